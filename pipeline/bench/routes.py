"""Every route asked by one user at a time, as online, among so many items: milliseconds of each, of all one after the
other, and of all side by side, as the service asks them.

By the wall clock, and by the clock of the thread, which stands still while others have the core: on a busy machine only
this one tells what a route takes.

The two-tower has first weights: how long it takes does not depend on how good they are. Ease and SLIT are of the 5,000
most taken items, the graph filter of 32 singular vectors, iALS of 64 numbers and two sweeps. Left out are Markov, whose
fit walks through all pairs of items, and trained routes but the two-tower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from pipeline.bench.market import features_of
from pipeline.config import Recall
from pipeline.features.store import FeatureStore
from pipeline.recall import trained, two_tower
from pipeline.recall.candidates import ROUTES
from pipeline.recall.route import Requests, Route
from pipeline.recall.snapshot import Snapshot, take
from pipeline.serving.stages import Routes

OPTIONS: dict[str, dict[str, Any]] = {
    "two_tower": {"index": "pq"},
    "ease": {"most_taken": 5_000},
    "slit": {"most_taken": 5_000},
    "graph_filter": {"rank": 32},
    "ials": {"index": "pq", "width": 64, "sweeps": 2},
}
TOO_LONG = ("markov",)
WARM_UP = 50
PATIENT = 60_000.0


def bench(
    users: int = 50_000,
    items: int = 100_000,
    impressions: int = 300_000,
    requests: int = 2_000,
    k: int = Recall.per_route,
    threads: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """p50 and p99 of `requests` users with a history, after loading: of each route and of `all`, on one thread, and of
    all `side_by_side` on so many."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with (
        features_of(users=users, items=items, impressions=impressions, seed=seed) as features,
        tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place,
    ):
        store = FeatureStore.open(features)
        snapshot = take(store, store.slices["test"], "click")
        routes = _fitted(snapshot, Path(place), seed)
        generator = np.random.default_rng(seed)
        asking = generator.choice(snapshot.history["user"].unique().sort().to_numpy(), requests + WARM_UP)
        domains = generator.integers(0, len(store.schema.domains), len(asking))
        together = Requests.of(snapshot, pl.DataFrame({"user": asking, "domain": domains}))
        asked = [_alone(together, row) for row in range(len(asking))]
        taken = 1e3 * np.array([_ask(routes, one, k) for one in asked])[WARM_UP:]
        side_by_side = _side_by_side(routes, asked, k, threads)[WARM_UP:]
    figures: dict[str, float] = {"items": len(snapshot.items), "history": len(together.items) / len(asking)}
    for name, column in {**dict(zip(routes, taken.T, strict=True)), "all": taken.sum(axis=2).T}.items():
        for clock, measured in zip(("ms", "thread_ms"), column, strict=True):
            for percent in (50, 99):
                figures[f"{name}_p{percent}_{clock}"] = float(np.percentile(measured, percent))
    figures |= {f"side_by_side_p{percent}_ms": float(np.percentile(side_by_side, percent)) for percent in (50, 99)}
    return figures


def _fitted(snapshot: Snapshot, place: Path, seed: int) -> dict[str, Route]:
    torch.manual_seed(seed)
    content, width = two_tower.content_width(snapshot.store), 32
    tower = place / "tower"
    tower.mkdir()
    made = two_tower.make(snapshot.store.schema, width, content)
    trained.save(made, tower, two_tower.SETTINGS, {"width": width, "content": content})
    routes: dict[str, Route] = {}
    for name, route in ROUTES.items():
        if name in TOO_LONG or (hasattr(route, "train") and name != "two_tower"):
            continue
        folder = place / name
        folder.mkdir()
        model = {"model": tower} if name == "two_tower" else {}
        route.fit(snapshot, folder, **model, **OPTIONS.get(name, {}))
        routes[name] = route.load(folder, snapshot.store)
    return routes


def _alone(requests: Requests, row: int) -> Requests:
    one, events = slice(row, row + 1), slice(requests.offsets[row], requests.offsets[row + 1])
    return Requests(
        user=requests.user[one],
        domain=requests.domain[one],
        time=requests.time[one],
        items=requests.items[events],
        times=requests.times[events],
        offsets=np.array([0, events.stop - events.start]),
    )


def _ask(routes: dict[str, Route], request: Requests, k: int) -> npt.NDArray[np.float64]:
    """Seconds (2, routes): of the wall clock and of the thread's."""
    moments = [(time.perf_counter(), time.thread_time())]
    for route in routes.values():
        route.recall(request, k)
        moments.append((time.perf_counter(), time.thread_time()))
    return np.diff(moments, axis=0).T


def _side_by_side(
    routes: dict[str, Route], requests: Sequence[Requests], k: int, threads: int
) -> npt.NDArray[np.float64]:
    """Milliseconds of each request by the wall clock, of the service's own stage."""
    stage = Routes(routes, threads, PATIENT)
    moments = [time.perf_counter()]
    for request in requests:
        stage.ask(tuple(routes), request, k)
        moments.append(time.perf_counter())
    stage.close()
    return 1e3 * np.diff(moments)
