"""Which items come into a batch, and how often they are expected there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pipeline import config
from pipeline.features import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.recall.sampling import Cut, Sampler
from pipeline.sources import contract

CUT = Cut.of(np.array([2, 1, 2, 2]), np.array([5, 3, 4, 1]), 4)


def test_sampler_shares() -> None:
    """Items 1 and 2 of five were engaged with 3 and 0 times; item 4 is not to be drawn."""
    sampler = Sampler.of(np.array([1, 1, 1, 3]), np.array([1, 2, 3]), 5)
    weights = np.array([0, 4, 1, 2, 0]) ** 0.75
    np.testing.assert_allclose(sampler.positive, [0, 0.75, 0, 0.25, 0])
    np.testing.assert_allclose(sampler.negative, weights / weights.sum())
    expected = np.log(8 * 0.75 + 4 * weights[1] / weights.sum())
    assert float(sampler.log_q(torch.tensor([1]), 8, 4)) == pytest.approx(expected, rel=1e-6)


def test_only_hot_items_are_thinned_out() -> None:
    items = np.concatenate([np.zeros(9_000, np.int64), np.arange(1, 1_000)])
    sampler = Sampler.of(items, np.arange(1_000), 1_000)
    bound = 10 * len(items) / 1_000 / 9_000
    assert float(sampler.keep[0]) == pytest.approx(bound**0.5 + bound)
    assert (sampler.keep[1:] == 1).all()
    assert float(sampler.positive.sum()) == pytest.approx(1.0)


def test_what_was_cut_is_packed_by_user() -> None:
    assert CUT.offsets.tolist() == [0, 0, 1, 4, 4]
    assert CUT.items.tolist() == [3, 1, 4, 5]
    users = torch.tensor([0, 1, 2, 2, 2, 3] * 50)
    item, there = CUT.draw(users, torch.Generator().manual_seed(0))
    assert there.tolist() == [False, True, True, True, True, False] * 50
    assert set(item[users == 1].tolist()) == {3}
    assert set(item[users == 2].tolist()) == {1, 4, 5}


def test_half_of_the_negatives_of_users_with_a_cut_are_hard_and_expected_so() -> None:
    """Two rows of user 1, one of user 2 and one of user 3, who has none cut."""
    items, users = np.array([6, 6, 7, 7]), np.array([1, 1, 2, 3])
    sampler = Sampler.of(items, np.array([6, 7]), 8, users=users, cut=CUT)
    from_cut = np.array([0, 1 / 12, 0, 1 / 2, 1 / 12, 1 / 12, 0, 0])
    np.testing.assert_allclose(sampler.negative, (1 - 0.5 * 0.75) * sampler.easy.numpy() + 0.5 * from_cut)
    assert float(sampler.negative.sum()) == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = sampler.draw(torch.from_numpy(users), 40_000, generator)
    shares = np.bincount(drawn, minlength=8) / len(drawn)
    np.testing.assert_allclose(shares, sampler.negative, atol=0.01)
    of_two, of_three = drawn[2::4], drawn[3::4]
    assert set(of_two[of_two < 6].tolist()) == {1, 4, 5}
    assert float((of_two < 6).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (of_three >= 6).all()


def test_without_a_cut_all_negatives_are_easy() -> None:
    sampler = Sampler.of(np.array([1, 1, 2]), np.array([1, 2, 3]), 4)
    assert sampler.negative is sampler.easy
    empty = Cut.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 4)
    other = Sampler.of(np.array([1, 1, 2]), np.array([1, 2, 3]), 4, users=np.array([1, 2, 3]), cut=empty)
    torch.testing.assert_close(other.negative, sampler.easy)
    draws = [one.draw(torch.tensor([1, 2]), 50, torch.Generator().manual_seed(0)) for one in (sampler, other)]
    assert torch.equal(*draws)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, out = tmp_path_factory.mktemp("events"), tmp_path_factory.mktemp("features")
    settings = config.Config(source=config.Simulator(users=60, items=80, impressions=2_000, domains=2))
    contract.write_events(settings.source, settings.contract, events)
    build.build(events, out, features=settings.features, contract=settings.contract, split=settings.split)
    return out


def earlier_run(folder: Path, features: Path, user: int, items: list[int], shown: list[bool], time: int) -> Path:
    """What a run leaves behind that had asked for two users at `time`, the other being the unknown one."""
    folder.mkdir()
    request = {"request": [0, 1], "user": [0, user], "time": [time, time]}
    pl.DataFrame(request, schema_overrides={"request": pl.UInt32, "user": pl.Int32}).write_parquet(
        folder / "requests.parquet"
    )
    ranked = {"request": [1] * len(items) + [0], "item": [*items, 1], "shown": [*shown, False]}
    pl.DataFrame(ranked, schema_overrides={"request": pl.UInt32, "item": pl.Int32}).write_parquet(
        folder / "ranked.parquet"
    )
    named = {"recall": str(folder), "ranked": str(folder), "features": str(features)}
    (folder / "latest.json").write_text(json.dumps({"folders": named}))
    return folder / "latest.json"


def test_hard_negatives_are_what_an_earlier_run_recalled_and_did_not_show(features: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    moment, user = store.slices["validation"], 5
    log = pl.DataFrame(store.columns(["user", "item", "time"])).filter(pl.col("user") == user)
    seen = log.filter(pl.col("time") < moment)["item"].to_list()
    held = [store.behaviours[name] for name in store.behaviours]
    taken = {int(item) for one in held for item in one["item"][one["user"] == user]}
    new = [item for item in range(1, len(store.items["code_item_id"])) if item not in {*seen, *taken}][:4]
    items, shown = [*new, seen[0]], [False, True, False, False, False]
    latest = earlier_run(tmp_path / "run", features, user, items, shown, moment)
    cut = Cut.read(latest, store)
    begin, end = cut.offsets[user : user + 2].tolist()
    assert cut.items[begin:end].tolist() == [new[0], new[2], new[3]]
    assert len(cut.items) == 3


def test_numbers_of_another_features_folder_are_matched_by_raw_ids(features: Path, tmp_path: Path) -> None:
    """The earlier run had all items numbered in the opposite order, and one that is gone."""
    store, old = FeatureStore.open(features), tmp_path / "old"
    shutil.copytree(features, old)
    items = pl.read_parquet(old / "items.parquet")
    backwards = pl.concat([items[:1], items[1:].reverse()])
    gone = backwards["item_id"].to_list()
    gone[2] = max(items["item_id"].drop_nulls().to_list()) + 1 if items["item_id"].dtype.is_integer() else "gone"
    backwards.with_columns(pl.Series("item_id", gone, dtype=items["item_id"].dtype)).write_parquet(
        old / "items.parquet"
    )
    size, user = len(items), 5
    log = pl.DataFrame(store.columns(["user", "item", "time"]))
    mine = log.filter((pl.col("user") == user), pl.col("time") < store.slices["validation"])["item"].to_list()
    latest = earlier_run(tmp_path / "run", old, user, [1, 2], [False, False], store.slices["validation"])
    expected = [] if size - 1 in mine else [size - 1]
    assert Cut.read(latest, store).items.tolist() == expected


def test_a_run_of_a_later_time_or_none_at_all_is_named(features: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    latest = earlier_run(tmp_path / "run", features, 5, [1], [False], store.slices["validation"] + 1)
    with pytest.raises(InputError, match="no request of that run is from before this validation slice"):
        Cut.read(latest, store)
    with pytest.raises(InputError, match="no such file"):
        Cut.read(tmp_path / "none.json", store)
