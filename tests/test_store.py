from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from day_files import encoded_log, read_log
from event_tables import CONTRACT, DAY, FEATURES, MINUTE, START, write_events

from models.encodings import Encodings
from models.schema import Encoding
from pipeline.config import Crosses, Split
from pipeline.features.build import build
from pipeline.features.store import UNKNOWN_AGE, UNKNOWN_TIME, FeatureStore, Rows, hour, item_age
from pipeline.ranking.batches import Encoder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    events = write_events(tmp_path_factory.mktemp("root") / "events")
    build(events, folder, features=FEATURES, contract=CONTRACT, split=Split())
    return FeatureStore.open(folder)


def assert_equal(one: Rows, other: Rows, labels: bool = True) -> None:
    for name, column in vars(one).items():
        if name != "labels" or labels:
            np.testing.assert_equal(column, getattr(other, name), err_msg=name)


def asked(store: FeatureStore, count: int = 500) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(1)
    return (
        random.integers(0, len(store.users["code_user_id"]), count),
        random.integers(0, len(store.items["code_item_id"]), count),
        random.integers(-1, 3, count),
        START + random.integers(0, 10 * 24 * 60, count) * MINUTE,
    )


@pytest.mark.parametrize("which", ["store", "outside"])
def test_the_log_and_any_rows_have_one_definition(which, request):
    store = request.getfixturevalue(which)
    store = store if which == "store" else store[1]
    log = store.log()
    assert log.context[:, -1].any()
    context = {
        field.name: log.context[:, place]
        for place, field in enumerate(field for field in store.schema.fields if field.role == "context")
    }
    assert_equal(log, store.rows(log.user, log.item, log.domain, log.time, context), labels=False)


def test_opening_reads_nothing_of_the_log(store, tmp_path):
    """Without its days and behaviours a folder opens, and what needs them fails."""
    shutil.copytree(store.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("days", "behaviour_*"))
    bare = FeatureStore.open(tmp_path / "bare")
    assert set(bare.behaviours) == {"clicked", "converted"}
    for ask in (lambda: bare.events["user"], lambda: bare.behaviours["clicked"]["user"]):
        with pytest.raises(FileNotFoundError):
            ask()


def test_the_events_are_those_of_the_days_and_the_conversions_when_they_became_known(store):
    log = read_log(store.folder)
    known = log.filter(pl.col("convert") > 0, pl.col("convert_time").is_not_null())
    assert set(store.events) == {"user", "item", "domain", "time", "shows", "click", "convert"}
    np.testing.assert_array_equal(store.events["time"], [*log["time"], *known["convert_time"]])
    np.testing.assert_array_equal(store.events["shows"], [1] * len(log) + [0] * len(known))
    np.testing.assert_array_equal(store.events["convert"], [0] * len(log) + [1] * len(known))
    assert store.events["click"].sum() == log["click"].sum()


def test_slices_are_disjoint_and_in_order(store):
    parts = [store.log(name) for name in ("train", "validation", "test")]
    assert_equal(Rows.concatenate(parts), store.log())
    assert parts[0].time.max() < store.slices["validation"] <= parts[1].time.min()
    assert parts[1].time.max() < store.slices["test"] <= parts[2].time.min()
    assert set(np.unique(parts[0].labels)) == {0, 1}


def test_a_row_alone_equals_the_row_in_company(store):
    questions = asked(store)
    rows = store.rows(*questions)
    for place in (0, 7, 499):
        assert_equal(rows.take(np.array([place])), store.rows(*(column[[place]] for column in questions)))
    assert_equal(rows.take(slice(3, 9)), store.rows(*(column[3:9] for column in questions)))


def test_chunks_change_nothing(store, monkeypatch):
    questions = asked(store)
    whole = store.rows(*questions)
    monkeypatch.setattr("pipeline.features.store.CHUNK", 64)
    assert_equal(whole, store.rows(*questions))


def test_the_future_changes_nothing(store):
    moment = START + 5 * DAY
    user, item, domain, _ = asked(store)
    past = store.cut(moment)
    assert len(past.events["time"]) < len(store.events["time"])
    times = np.full(len(user), moment)
    whole, cut = store.rows(user, item, domain, times), past.rows(user, item, domain, times)
    np.testing.assert_array_equal(whole.numbers, cut.numbers)
    np.testing.assert_equal(whole.lengths, cut.lengths)


def test_no_rows(store):
    nothing = np.empty(0, np.int64)
    rows = store.rows(nothing, nothing, nothing, nothing)
    assert len(rows) == 0
    assert rows.numbers.shape == (0, len(store.schema.numbers))


def test_context_defaults(store):
    rows = store.rows(*(np.array([value]) for value in (1, 1, 2, START)))
    fields = [field.name for field in store.schema.fields if field.role == "context"]
    assert dict(zip(fields, rows.context[0].tolist(), strict=True)) == {
        "domain": 3,
        "hour": START % DAY // (60 * MINUTE) + 1,
        "position": 1,
    }
    assert np.isnan(rows.labels).all()
    given = store.rows(*(np.array([value]) for value in (1, 1, 2, START)), {"position": np.array([7])})
    assert given.context[0].tolist()[fields.index("position")] == 7


def test_the_unknown_user_and_item_have_no_past(store):
    rows = store.rows(*(np.array([value]) for value in (0, 0, -1, START + 9 * DAY)))
    values = dict(zip((number.name for number in store.schema.numbers), rows.numbers[0], strict=True))
    assert values["user_shows_all"] == values["item_shows_all"] == values["domain_shows_all"] == 0
    assert values["item_age"] == UNKNOWN_AGE
    assert values["clicked_content_similarity"] == 0
    assert rows.lengths["clicked"].tolist() == [0]


def test_numbers_equal_plain_loops(store):
    log = encoded_log(store)
    items = pl.read_parquet(store.folder / "items.parquet")
    category = items["key_category"].to_list()
    rows = log.rows(named=True)
    for row in rows[1::237]:
        past = [other for other in rows if other["time"] < row["time"]]
        pairs = [
            other for other in past if other["user"] == row["user"] and category[other["item"]] == category[row["item"]]
        ]
        recent = [other for other in past if other["item"] == row["item"] and other["time"] >= row["time"] - DAY]
        assert row["user+category_shows_all"] == np.float32(np.log1p(len(pairs)))
        assert row["item_shows_1d"] == np.float32(np.log1p(len(recent)))
        a, b = store.recipe.priors["item"]["convert"]
        known = [other for other in rows if other["item"] == row["item"] and other["convert"]]
        converted = sum(other["convert_time"] < row["time"] for other in known)
        shows = sum(other["item"] == row["item"] for other in past)
        assert row["item_convert_rate_all"] == np.float32((converted + a) / (shows + b))


def test_histories_lie_before_their_rows(store):
    log = store.log()
    for name, table in store.behaviours.items():
        for row in range(0, len(log), 97):
            end, length = log.ends[name][row], log.lengths[name][row]
            assert (table["user"][end - length : end] == log.user[row]).all()
            assert (table["time"][end - length : end] < log.time[row]).all()
        assert log.lengths[name].max() == FEATURES.length


def test_hour_and_age():
    assert hour(np.array([0, 60 * MINUTE - 1, 60 * MINUTE, DAY - 1])).tolist() == [1, 1, 2, 24]
    ages = item_age(np.array([0, 120 * MINUTE, UNKNOWN_TIME]), np.array([60 * MINUTE] * 3))
    np.testing.assert_allclose(ages, [np.log(2), 0, UNKNOWN_AGE])


def test_the_store_needs_neither_polars_nor_xxhash():
    code = "import sys, pipeline.features.store; print({'polars', 'xxhash', 'mlflow', 'faiss'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A long behaviour beside a short one, crosses, two parts of users, and vectors for users too, of which every third
    has none."""
    folder = tmp_path_factory.mktemp("features")
    events = write_events(tmp_path_factory.mktemp("root") / "events")
    vectors = np.random.default_rng(5).normal(size=(200, 4)).round(3).tolist()
    users = pl.read_parquet(events / "users.parquet").with_columns(
        content=pl.Series([None if user % 3 == 0 else vector for user, vector in enumerate(vectors)])
    )
    users.write_parquet(events / "users.parquet")
    pairs = ("segment*age", "author_id*category", "segment*category", "age*device", "position*hour", "user_id*domain")
    features = replace(
        FEATURES,
        context=("hour", "device"),
        lengths={"clicked": 5_000},
        crosses=Crosses(pairs=pairs),
        admit_after=3,
        parts=2,
    )
    build(events, folder, features=features, contract=CONTRACT, split=Split())
    return users, FeatureStore.open(folder)


def test_the_cosine_of_the_outside_vectors(outside):
    users, store = outside
    assert store.schema.numbers[-1].name == "content_similarity"
    assert store.schema.numbers[-1].role == "cross"
    user, item, domain, time = asked(store)
    found = store.rows(user, item, domain, time).numbers[:, -1]
    items = pl.read_parquet(store.folder / "items.parquet")["content"].to_numpy()
    ids = pl.read_parquet(store.folder / "users.parquet")["user_id"]
    vectors = dict(users.select("user_id", "content").rows())
    for row in range(len(user)):
        vector = vectors.get(ids[int(user[row])])
        if vector is None or not item[row]:
            assert found[row] == 0
        else:
            a, b = np.array(vector), items[item[row]]
            assert found[row] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert (store.log().numbers[:, -1] != 0).any()


def test_the_cosine_becomes_levels(outside):
    _, store = outside
    schema = replace(store.schema, encodings=(Encoding("content_similarity", low=-1.0),))
    batch = Encoder(store)(store.log("test"))
    encodings = Encodings(schema, 8)
    levels = torch.round((batch["numbers"][:, -1] + 1) * 50).long()
    assert torch.equal(encodings(batch), encodings.encoders[0].encode(levels))
    assert schema.encoding_role(schema.encodings[0]) == "cross"


def test_each_behaviour_has_a_length_of_its_own(outside, store):
    _, long = outside
    assert [sequence.length for sequence in long.schema.sequences] == [5_000, 6]
    log, short = long.log(), store.log()
    np.testing.assert_array_equal(log.lengths["converted"], short.lengths["converted"])
    np.testing.assert_array_equal(np.minimum(log.lengths["clicked"], 6), short.lengths["clicked"])
    table = long.behaviours["clicked"]
    for row in range(0, len(log), 97):
        own = (table["user"] == log.user[row]) & (table["time"] < log.time[row])
        assert log.lengths["clicked"][row] == own.sum()


def test_events_carry_their_domain(store):
    batch, log = Encoder(store)(store.log()), store.log()
    place = store.schema.sequences[0].fields.index("domain")
    codes = batch["clicked.fields"][:, place].numpy() - store.schema.offsets[store.schema.position("domain")]
    table = store.behaviours["clicked"]["domain"]
    events = [
        table[end - length : end] for end, length in zip(log.ends["clicked"], log.lengths["clicked"], strict=True)
    ]
    np.testing.assert_array_equal(codes, np.concatenate(events) + 1)
    assert set(np.unique(codes)) == {0, 1, 2, 3}


def test_users_without_items_are_what_rows_of_any_item_say_of_them(store):
    user, item, domain, time = asked(store)
    domain = np.maximum(domain, 0)
    rows, encoder = store.rows(user, item, domain, time), Encoder(store)
    whole, told = encoder(rows), encoder.users(user, domain, time, store.pointers(user, time))
    own = store.schema.positions("user")
    np.testing.assert_array_equal(told["fields"][:, own], whole["fields"][:, own])
    others = store.schema.positions("item", "context", "cross")
    unknown = np.array(store.schema.offsets)[others]
    np.testing.assert_array_equal(told["fields"][:, others], np.tile(unknown, (len(user), 1)))
    for name in ("domain", "clicked.fields", "clicked.gap", "clicked.row"):
        np.testing.assert_array_equal(told[name], whole[name])
    np.testing.assert_equal(rows.pointers, store.pointers(user, time))
