"""Asking a route as the recall stage does, for the tests of routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from models.schema import Schema
from pipeline.features import identity, indexes
from pipeline.features.store import FeatureStore, Recipe
from pipeline.recall.route import Requests
from pipeline.recall.snapshot import DAY, Snapshot

Lists: TypeAlias = list[list[tuple[int, float]]]

HISTORY = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}
SHOWN = {"user": pl.Int32, "item": pl.Int32, "domain": pl.Int16, "time": pl.Int64, "engaged": pl.Boolean}
KEYED = ("segment", "author_id", "category")
NOW = 100 * DAY
NOBODY = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}


def ask(route: ModuleType, folder: Path, taken: Snapshot, requests: pl.DataFrame, k: int) -> pl.DataFrame:
    """request, item, rank, score; requests without user or domain come from nobody, or from domain 0."""
    requests = pl.concat([requests, pl.DataFrame(schema=NOBODY)], how="diagonal").with_columns(
        pl.col("user", "domain").fill_null(0)
    )
    if "user" not in taken.history.columns:
        taken = replace(taken, history=pl.DataFrame(schema=HISTORY))
    return route.load(folder, taken.store).recall(Requests.of(taken, requests), k).frame(requests["request"])


def engaged(taken: list[tuple[int, int]], available: list[int]) -> Snapshot:
    """A snapshot of what was taken, as (user, item), oldest first."""
    rows = [(user, item, time) for time, (user, item) in enumerate(taken)]
    history = pl.DataFrame(rows, schema=HISTORY, orient="row").sort("user", "time")
    items = pl.DataFrame({"item": available}, schema={"item": pl.Int32})
    return Snapshot(len(rows), history, history, items, store=None)  # type: ignore[arg-type]


def described(
    folder: Path,
    users: dict[str, Any],
    items: dict[str, Any],
    *,
    taken: Sequence[tuple[int, int]] = (),
    days: Sequence[int] | None = None,
) -> Snapshot:
    """A snapshot, on day 100, of users and items with raw attributes, and a features folder of them.

    The first of each has number 1; a `content` holds vectors. `taken` is (user, item), oldest first, the last an hour
    ago, each shown and engaged with in domain 0. Items are `days` old, or one day.
    """
    tables, columns = {}, {}
    for side, told in (("user", users), ("item", items)):
        size = len(next(iter(told.values())))
        vectors = (
            {"content": np.concatenate([np.zeros((1, 2)), told.pop("content")]).astype(np.float32)}
            if "content" in told
            else {}
        )
        table = pl.DataFrame({f"{side}_id": [f"{side[0]}{number}" for number in range(1, size + 1)], **told})
        tables[side] = pl.concat([table.clear(1), table])
        keys = {f"key_{name}": identity.keys(tables[side][name]).to_numpy() for name in KEYED if name in told}
        columns[side] = {f"code_{side}_id": np.arange(size + 1), **keys, **vectors}
        tables[side].select(f"{side}_id").write_parquet(folder / f"{side}s.parquet")
    indexes.write(tables["user"], tables["item"], np.zeros(len(tables["item"])), folder)
    schema = Schema(fields=(), numbers=(), sequences=(), labels=(), domains=("home", "shop"))
    recipe = Recipe((), (), (), (), False, {}, {})
    store = FeatureStore(folder, schema, {}, recipe, columns["user"], columns["item"], {}, {})
    rows = [(user, item, 0, NOW - (len(taken) - place) * DAY // 24, True) for place, (user, item) in enumerate(taken)]
    shown = pl.DataFrame(rows, schema=SHOWN, orient="row")
    history = shown.select("user", "item", "time").sort("user", "time", maintain_order=True)
    size = len(tables["item"]) - 1
    available = pl.DataFrame(
        {
            "item": pl.int_range(1, size + 1, dtype=pl.Int32, eager=True),
            "published": [NOW - age * DAY for age in days or [1] * size],
            **{name: columns["item"][f"key_{name}"][1:] for name in KEYED if f"key_{name}" in columns["item"]},
        }
    )
    return Snapshot(NOW, shown, history, available, store)


def recalled(route: ModuleType, taken: Snapshot, folder: Path, users: list[int], k: int = 10, **options: Any) -> Lists:
    """What a route fitted on the snapshot has for each user, best first: (item, score)."""
    folder.mkdir()
    route.fit(taken, folder, **options)
    requests = pl.DataFrame(
        {"request": range(len(users)), "user": users}, schema={"request": pl.UInt32, "user": pl.Int32}
    )
    found = ask(route, folder, taken, requests, k)
    return [found.filter(request=number).select("item", "score").rows() for number in range(len(users))]


def alone_as_in_company(route: ModuleType, taken: Snapshot, folder: Path, users: list[int]) -> None:
    """Assert that a fitted route answers each user alike alone and among the others."""
    requests = pl.DataFrame(
        {"request": range(len(users)), "user": users}, schema={"request": pl.UInt32, "user": pl.Int32}
    )
    together = ask(route, folder, taken, requests, 7)
    assert len(together)
    for place in range(len(users)):
        alone = ask(route, folder, taken, requests[place : place + 1], 7)
        assert alone.equals(together.filter(request=place))


def same_bytes(one: Path, other: Path) -> None:
    """Assert that two folders hold the same files, and at least one."""
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert files
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
