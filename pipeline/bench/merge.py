"""The snake merge: a batch of many requests and one request alone, against a plain loop with equal output."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.bench.measure import seconds
from pipeline.recall.merge import NO_LIMIT, packed, snake, snake_merge
from pipeline.recall.route import Found
from pipeline.recall.snapshot import CANDIDATES

CATALOGUE = 5_000
COMPARED = 500
ONE_ROUTES, ONE_PER_ROUTE = 10, 500


def bench(
    requests: int = 8_000, routes: int = 10, per_route: int = 200, size: int = 400, seed: int = 0
) -> dict[str, float]:
    """`requests` × `routes` × `per_route` candidates at once; and one request of 10 routes × 500, from what the routes
    found to the merged list."""
    generator = np.random.default_rng(seed)
    names = [f"route_{number}" for number in range(routes)]
    items = _lists(generator, requests * routes, per_route)
    frame = pl.DataFrame(
        {
            "request": np.repeat(np.arange(requests), routes * per_route),
            "item": items.ravel(),
            "route": np.tile(np.repeat(names, per_route), requests),
            "rank": np.tile(np.arange(1, per_route + 1), requests * routes),
            "score": np.zeros(requests * routes * per_route, np.float32),
        }
    ).cast(CANDIDATES)  # type: ignore[arg-type]
    compared = min(requests, COMPARED)
    by_request = items.reshape(requests, routes, per_route)[:compared].tolist()

    def ours() -> pl.DataFrame:
        return snake_merge(frame, names, size=size)

    def loop() -> list[list[int]]:
        return [_loop(lists, size) for lists in by_request]

    merged = ours().filter(pl.col("request") < compared)
    if merged.group_by("request", maintain_order=True).agg("item")["item"].to_list() != loop():
        raise AssertionError("the merge and the loop disagree")
    own, rival = seconds(ours), seconds(loop) * requests / compared

    alone = [
        Found(one[None], np.zeros((1, ONE_PER_ROUTE), np.float32))
        for one in _lists(generator, ONE_ROUTES, ONE_PER_ROUTE)
    ]
    limits = np.full(ONE_ROUTES, NO_LIMIT)
    one = seconds(lambda: snake(*packed(alone), limits=limits, size=size), runs=200)
    return {
        "candidates": len(frame),
        "seconds": own,
        "candidates_per_second": len(frame) / own,
        "ratio_to_loop": rival / own,
        "one_request_ms": 1e3 * one,
    }


def _lists(generator: np.random.Generator, count: int, length: int) -> npt.NDArray[np.int32]:
    """`count` lists (count, length) of items without repeats, from a few shuffles of the catalogue."""
    shuffles = generator.permuted(np.tile(np.arange(CATALOGUE, dtype=np.int32), (200, 1)), axis=1)
    begin = generator.integers(0, CATALOGUE, count)
    column = (begin[:, None] + np.arange(length)) % CATALOGUE
    lists: npt.NDArray[np.int32] = shuffles[generator.integers(0, len(shuffles), count)[:, None], column]
    return lists


def _loop(lists: list[list[int]], size: int) -> list[int]:
    taken: dict[int, None] = {}
    for turn in range(len(lists[0])):
        for items in lists if turn % 2 == 0 else reversed(lists):
            taken.setdefault(items[turn])
    return list(taken)[:size]
