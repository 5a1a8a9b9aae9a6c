from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from route_tables import NOW, alone_as_in_company, ask, described, same_bytes

from pipeline.recall import cache
from pipeline.recall.snapshot import Snapshot

USERS, ITEMS = {"name": ["x", "y", "z"]}, {"category": ["a"] * 6}
ASKED = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16, "time": pl.Int64}
RANKED = {"request": pl.UInt32, "item": pl.Int32, "fine_rank": pl.Int32, "shown": pl.Boolean}
EARLIER = NOW - 5 * cache.HOUR


def remembered(folder: Path, taken: Snapshot, top: int = 100) -> Path:
    """User 1 asked in both domains and user 2 in one; in each the best item was shown. Nobody's list is not kept."""
    requests = [(0, 1, 0, EARLIER), (1, 1, 1, EARLIER), (2, 2, 0, EARLIER), (3, 0, 0, EARLIER)]
    ranked = [(0, 5, 1, True), (0, 2, 3, False), (0, 1, 2, False), (1, 6, 1, True), (1, 3, 2, False), (1, 1, 3, False)]
    ranked += [(2, 1, 2, True), (2, 4, 1, False), (3, 2, 1, False)]
    for name, rows, schema in (("requests", requests, ASKED), ("ranked", ranked, RANKED)):
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"{name}.parquet")
    (taken.store.folder / "schema.json").write_text(json.dumps({"domains": taken.store.schema.domains}))
    model = folder / "model"
    model.mkdir()
    told = cache.remember(taken.store.folder, folder, folder, model, top=top)
    assert told["cached_users"] == 2
    return model


def lists(folder: Path, taken: Snapshot, model: Path | None, asked: list[tuple[int, int]], **options: float) -> list:
    folder.mkdir()
    cache.fit(taken, folder, model=model, **options)
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}
    requests = pl.DataFrame([(n, *one) for n, one in enumerate(asked)], schema=schema, orient="row")
    found = ask(cache, folder, taken, requests, 10)
    return [found.filter(request=number).select("item", "score").rows() for number in range(len(asked))]


def test_what_was_not_shown_the_own_domain_first(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS)
    found = lists(tmp_path / "cache", taken, remembered(tmp_path, taken), [(1, 0), (1, 1), (2, 1), (3, 0), (0, 0)])
    assert found[0] == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert found[1] == [(3, 2.0), (1, 1.5), (2, 0.5)]
    assert found[2:] == [[(4, 1.0)], [], []]


def test_the_first_so_many_of_each_list(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS)
    found = lists(tmp_path / "cache", taken, remembered(tmp_path, taken, top=1), [(1, 0)])
    assert found == [[(1, 2.0), (3, 1.0)]]


def test_neither_the_future_nor_what_is_too_old(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS)
    model = remembered(tmp_path, taken)
    assert lists(tmp_path / "old", taken, model, [(1, 0)], hours=4.9) == [[]]
    assert lists(tmp_path / "good", taken, model, [(2, 0)], hours=5.0) == [[(4, 2.0)]]
    assert lists(tmp_path / "early", replace(taken, time=EARLIER), model, [(1, 0)]) == [[]]


def test_neither_what_was_taken_since_nor_what_is_gone(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, taken=[(1, 1)])
    model = remembered(tmp_path, taken)
    fewer = replace(taken, items=taken.items.filter(pl.col("item") != 2))
    assert lists(tmp_path / "cache", fewer, model, [(1, 0)]) == [[(3, 1.0)]]


def test_lists_outlive_the_numbers_they_were_made_with(tmp_path: Path) -> None:
    """In the later features users and items are numbered the other way round, and i4 is no more."""
    taken = described(tmp_path, USERS, ITEMS)
    model = remembered(tmp_path, taken)
    (tmp_path / "later").mkdir()
    later = described(tmp_path / "later", USERS, ITEMS)
    for side, ids in (("user", ["u3", "u2", "u1"]), ("item", ["i6", "i5", "i9", "i3", "i2", "i1"])):
        pl.DataFrame({f"{side}_id": [None, *ids]}).write_parquet(tmp_path / "later" / f"{side}s.parquet")
    assert lists(tmp_path / "cache", later, model, [(3, 0), (2, 0)]) == [[(6, 2.0), (5, 1.5), (4, 1.0)], []]


@pytest.mark.parametrize("there", [False, True])
def test_alone_as_in_company_the_same_bytes_and_without_a_last_time(tmp_path: Path, there: bool) -> None:
    taken = described(tmp_path, USERS, ITEMS)
    model = remembered(tmp_path, taken) if there else None
    for name in ("one", "other"):
        found = lists(tmp_path / name, taken, model, [(1, 0), (0, 0)])
    same_bytes(tmp_path / "one", tmp_path / "other")
    if there:
        alone_as_in_company(cache, taken, tmp_path / "one", [0, 1, 2, 3, 77])
    else:
        assert found == [[], []]
