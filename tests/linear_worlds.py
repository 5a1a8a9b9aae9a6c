"""Snapshots of a few events, for the tests of linear routes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
from route_tables import ask

from pipeline.recall.item_matrix import ItemMatrix
from pipeline.recall.route import Requests
from pipeline.recall.snapshot import Snapshot

REQUEST = {"request": pl.UInt32, "user": pl.Int32}


def snapshot(taken: list[tuple[int, int]], items: list[int]) -> Snapshot:
    """`taken` is (user, item), oldest first."""
    rows = [(user, item, time) for time, (user, item) in enumerate(taken)]
    schema = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}
    history = pl.DataFrame(rows, schema=schema, orient="row").sort("user", "time")
    available = pl.DataFrame({"item": items}, schema={"item": pl.Int32})
    return Snapshot(len(rows), history, history, available, store=None)  # type: ignore[arg-type]


def recalled(route: ModuleType, folder: Path, taken: Snapshot, users: list[int], k: int = 10) -> pl.DataFrame:
    requests = pl.DataFrame({"request": range(len(users)), "user": users}, schema=REQUEST)
    return ask(route, folder, taken, requests, k)


def asked(*histories: list[int]) -> Requests:
    """A request of each history of items, oldest first."""
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], np.int32)
    count = len(histories)
    return Requests(
        user=np.arange(1, count + 1, dtype=np.int32),
        domain=np.zeros(count, np.int16),
        time=np.zeros(count, np.int64),
        items=items,
        times=np.zeros(len(items), np.int64),
        offsets=offsets,
    )


def weights(route: ModuleType, folder: Path) -> np.ndarray:
    """The matrix that a route wrote, dense (I, I)."""
    matrix = route.load(folder, None)
    assert isinstance(matrix, ItemMatrix)
    table = matrix.weights
    dense = np.zeros((len(table), len(table)))
    dense[np.repeat(np.arange(len(table)), np.diff(table.indptr)), table.indices] = table.data
    return dense


def random_log(seed: int, users: int = 12, items: int = 9, events: int = 70) -> list[tuple[int, int]]:
    generator = np.random.default_rng(seed)
    pairs = zip(generator.integers(1, users + 1, events), generator.integers(1, items + 1, events), strict=True)
    return [(int(user), int(item)) for user, item in pairs]


def binary(taken: list[tuple[int, int]], size: int) -> np.ndarray:
    """Who took what, dense (users, size), users in ascending order."""
    users = sorted({user for user, _ in taken})
    matrix = np.zeros((len(users), size))
    for user, item in taken:
        matrix[users.index(user), item] = 1
    return matrix
