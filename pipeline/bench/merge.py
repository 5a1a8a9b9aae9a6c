"""The snake merge: candidates a second, against a plain loop with equal output."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.bench.measure import seconds
from pipeline.recall.merge import snake_merge
from pipeline.recall.snapshot import CANDIDATES


def bench(
    requests: int = 2_000, routes: int = 4, per_route: int = 200, size: int = 400, seed: int = 0
) -> dict[str, float]:
    generator = np.random.default_rng(seed)
    names = [f"route_{number}" for number in range(routes)]
    lists = generator.permuted(np.tile(np.arange(5_000, dtype=np.int32), (requests * routes // 20, 1)), axis=1)
    items = np.tile(lists[:, :per_route], (21, 1))[: requests * routes]
    frame = pl.DataFrame(
        {
            "request": np.repeat(np.arange(requests), routes * per_route),
            "item": items.ravel(),
            "route": np.tile(np.repeat(names, per_route), requests),
            "rank": np.tile(np.arange(1, per_route + 1), requests * routes),
            "score": np.zeros(requests * routes * per_route, np.float32),
        }
    ).cast(CANDIDATES)  # type: ignore[arg-type]
    by_request = items.reshape(requests, routes, per_route).tolist()

    def ours() -> pl.DataFrame:
        return snake_merge(frame, names, size=size, quota={})

    def loop() -> list[list[int]]:
        return [_loop(lists, size) for lists in by_request]

    merged = ours().group_by("request", maintain_order=True).agg("item")["item"].to_list()
    if merged != loop():
        raise AssertionError("the merge and the loop disagree")
    own, rival = seconds(ours), seconds(loop)
    one = frame.filter(pl.col("request") == 0)
    return {
        "candidates": len(frame),
        "candidates_per_second": len(frame) / own,
        "ratio_to_loop": rival / own,
        "one_request_ms": 1e3 * seconds(lambda: snake_merge(one, names, size=size, quota={}), runs=20),
    }


def _loop(lists: list[list[int]], size: int) -> list[int]:
    taken: dict[int, None] = {}
    for turn in range(len(lists[0])):
        for items in lists if turn % 2 == 0 else reversed(lists):
            taken.setdefault(items[turn])
    return list(taken)[:size]
