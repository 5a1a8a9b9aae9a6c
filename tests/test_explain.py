"""An explanation says what the store says, and a plain loop over the events it lists comes to the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from event_tables import CONTRACT, DAY, FEATURES, MINUTE, START, write_events

from pipeline.config import Crosses, Split
from pipeline.features.build import build
from pipeline.features.explain import Explanation, event_table, explain, moment, terminal
from pipeline.features.match import NO_GAP
from pipeline.features.store import UNKNOWN_AGE, FeatureStore
from pipeline.lake import InputError

SETTINGS = replace(
    FEATURES,
    context=("hour", "device"),
    lengths={"clicked": 9},
    crosses=Crosses(pairs=("segment*age", "age*device", "segment*category")),
)
LENGTHS = {"1h": 60 * MINUTE, "1d": DAY, "7d": 7 * DAY, "all": 1 << 60}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("root") / "events")


@pytest.fixture(scope="module")
def store(events: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("features")
    build(events, folder, features=SETTINGS, contract=CONTRACT, split=Split())
    return FeatureStore.open(folder)


@pytest.fixture(scope="module")
def some(events: Path, store: FeatureStore) -> list[Explanation]:
    """Explanations of twelve impressions of the log."""
    log = pl.read_parquet(events / "events.parquet").filter("shown").sample(12, seed=5)
    return [
        explain(store, events, str(row["user_id"]), row["item_id"], moment(row["time"].isoformat()), row["domain"])
        for row in log.iter_rows(named=True)
    ]


def test_the_values_are_those_of_the_log(some: list[Explanation], store: FeatureStore) -> None:
    log = store.log()
    names = [number.name for number in store.schema.numbers]
    for one in some:
        (place,) = np.flatnonzero(
            (log.time == one.time)
            & (log.user == one.user.row)
            & (log.item == one.item.row)
            & (log.domain == store.schema.domains.index(one.domain))
        )[:1]
        same = log.take(np.array([place]))
        np.testing.assert_array_equal(one.row.numbers, same.numbers)
        np.testing.assert_array_equal(one.row.context, same.context)
        told = {value.name: value.encoded for value in one.values}
        told |= {n: v for entity in one.entities for window in entity.windows for n, v in window.encoded.items()}
        told |= {n: v for history in one.histories for match in history.matches for n, v in match.encoded.items()}
        assert sorted(told) == sorted(names)
        np.testing.assert_array_equal([told[name] for name in names], same.numbers[0].astype(np.float64))
        codes = {code.name: code.code for code in one.codes}
        tables = {"user": (store.users, one.user.row), "item": (store.items, one.item.row)}
        for field in store.schema.fields:
            if field.role in tables:
                table, row = tables[field.role]
                assert codes[field.name] == table[f"code_{field.name}"][row]
        context = [store.schema.fields[n].name for n in store.schema.positions("context", "cross")]
        assert [codes[name] for name in context] == same.context[0].tolist()


def test_a_plain_loop_over_the_listed_events_agrees(some: list[Explanation], store: FeatureStore, events: Path) -> None:
    items = pl.read_parquet(events / "items.parquet")
    category = dict(items.select("item_id", "category").iter_rows())
    author = dict(items.select("item_id", "author_id").iter_rows())
    segment = dict(pl.read_parquet(events / "users.parquet").select("user_id", "segment").iter_rows())
    counted = event_table(store, store.events, np.arange(len(store.events["time"]))).rows(named=True)
    key = {
        "user": lambda e: e["user_id"],
        "item": lambda e: e["item_id"],
        "author_id": lambda e: author[e["item_id"]],
        "segment": lambda e: segment[e["user_id"]],
        "domain": lambda e: e["domain"],
        "user+category": lambda e: (e["user_id"], category[e["item_id"]]),
        "item+domain": lambda e: (e["item_id"], e["domain"]),
    }
    for one in some:
        own = {"user_id": int(one.user.id), "item_id": one.item.id, "domain": one.domain}
        for entity in one.entities:
            overall = {}
            for window in reversed(entity.windows):
                since = one.time - LENGTHS[window.window]
                times = store.events["time"]
                expected = [
                    number
                    for number, event in enumerate(counted)
                    if since <= times[number] < one.time and key[entity.name](event) == key[entity.name](own)
                ]
                assert sorted(window.events) == expected
                assert (np.diff(times[window.events]) >= 0).all()
                listed = [counted[number] for number in window.events]
                assert window.shows == sum(event["shows"] for event in listed)
                told = {f"{entity.name}_shows_{window.window}": np.float32(np.log1p(np.float64(window.shows)))}
                for rate, (a, b) in window.priors.items():
                    positives = sum(event[rate] for event in listed)
                    assert window.positives[rate] == positives
                    prior = overall.setdefault(rate, (positives + a) / (window.shows + b))
                    smoothed = prior if window.window == "all" else (positives + prior * b) / (window.shows + b)
                    told[f"{entity.name}_{rate}_rate_{window.window}"] = np.float32(smoothed)
                assert window.encoded == told


def test_histories_and_matches_come_from_earlier_events(
    some: list[Explanation], store: FeatureStore, events: Path
) -> None:
    attributes = {row["item_id"]: row for row in pl.read_parquet(events / "items.parquet").iter_rows(named=True)}
    for one in some:
        for history in one.histories:
            table = store.behaviours[history.behaviour]
            mine = np.flatnonzero((table["user"] == one.user.row) & (table["time"] < one.time))
            assert (
                history.events.tolist() == mine[-(9 if history.behaviour == "clicked" else FEATURES.length) :].tolist()
            )
            listed = event_table(store, table, history.events)
            for match in history.matches[:-1]:
                name = "item_id" if match.attribute == "item" else match.attribute
                wanted = attributes[one.item.id][name]
                same = [
                    number
                    for number, item in zip(history.events, listed["item_id"], strict=True)
                    if wanted is not None and attributes[item][name] == wanted
                ]
                assert match.events.tolist() == same
                gap = np.log1p((one.time - table["time"][same[-1]]) / MINUTE) if same else NO_GAP
                assert list(match.encoded.values()) == [np.float32(math.log1p(len(same))), np.float32(gap)]
            assert history.matches[-1].attribute == "content"


def test_raw_values_and_vocabulary(some: list[Explanation], store: FeatureStore, events: Path) -> None:
    vocabulary = pl.read_parquet(store.folder / "vocabulary.parquet")
    items = pl.read_parquet(events / "items.parquet")
    for one in some:
        codes = {code.name: code for code in one.codes}
        tag = codes["tag"]
        assert tag.raw == items.filter(item_id=one.item.id)["tag"].item()
        assert (tag.count, tag.last_seen) == vocabulary.filter(field="tag", value=tag.raw).select(
            "count", "last_seen"
        ).row(0)
        assert codes["hour"].raw == one.time // (60 * MINUTE) % 24
        assert codes["domain"].raw == one.domain
        assert one.logged is not None
        assert codes["device"].raw == one.logged["device"]
        assert codes["age*device"].raw == f"{codes['age'].raw} * {codes['device'].raw}"
        assert (codes["age*device"].role, codes["segment*age"].role) == ("cross", "user")
        seen = vocabulary.filter(field="segment*age", value=f"{codes['segment'].raw} * {codes['age'].raw}")
        assert seen["code"].to_list() == ([codes["segment*age"].code] if codes["segment*age"].code else [])
        price = next(value for value in one.values if value.name == "price")
        assert price.raw == items.filter(item_id=one.item.id)["price"].item()


def test_the_unknown(store: FeatureStore, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = explain(store, events, "nobody", "nothing", START + 9 * DAY)
    assert (told.user.row, told.item.row, told.logged, told.domain) == (0, 0, None, "home")
    assert all(code.code == 0 and code.raw is None for code in told.codes if code.role in ("user", "item"))
    assert next(value.encoded for value in told.values if value.name == "item_age") == UNKNOWN_AGE
    own = [entity for entity in told.entities if {"user", "item"} & {*entity.name.split("+")}]
    assert sum(len(window.events) for entity in own for window in entity.windows) == 0
    assert [history.length for history in told.histories] == [0, 0]
    terminal(told, store)
    out = capsys.readouterr().out
    assert "user nobody is not in the log or its tables" in out
    assert "item nothing is not in the log or its tables" in out


def test_what_is_printed_fits(some: list[Explanation], store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(some[0], store)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for name in ("user", "item", "context", "clicked", "user+category", "an impression of the log: click"):
        assert name in out


def test_moments() -> None:
    assert moment("1700000000.5") == moment("2023-11-14T22:13:20.5") == 1_700_000_000_500_000
    assert moment("2023-11-15T06:13:20+08:00") == 1_700_000_000_000_000
    with pytest.raises(InputError, match="'soon' is no time; write"):
        moment("soon")


def test_an_unknown_domain_is_told(store: FeatureStore, events: Path) -> None:
    with pytest.raises(InputError, match="'mall' is no domain of the log; it has home, live, search"):
        explain(store, events, "1", "i1", START, "mall")
