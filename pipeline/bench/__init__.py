"""The benchmarks of `recfunnel bench`: a function with sizes and seed as keywords, and the sizes of a quick look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.bench import (
    ann,
    delay,
    epoch,
    features,
    loader,
    merge,
    processes,
    recall,
    refresh,
    routes,
    scale,
    serve,
    similar_items,
    soak,
    train,
)

Bench = tuple[Callable[..., dict[str, float]], dict[str, Any]]

BENCHES: dict[str, Bench] = {
    "train": (train.bench, {"rows": 50_000}),
    "processes": (processes.bench, {"rows": 50_000, "tasks": "a,b"}),
    "loader": (loader.bench, {"rows": 100_000}),
    "epoch": (epoch.bench, {"rows": 500_000, "distinct": 50_000}),
    "features": (features.bench, {"events": 100_000}),
    "scale": (scale.bench, {"events": 50_000, "days": 10, "parts": 2}),
    "recall": (recall.bench, {"users": 2_000, "impressions": 30_000}),
    "ann": (ann.bench, {"vectors": 20_000}),
    "routes": (routes.bench, {"users": 2_000, "items": 5_000, "impressions": 30_000, "requests": 200}),
    "item_cf": (similar_items.bench_item_cf, {"interactions": 100_000}),
    "swing": (similar_items.bench_swing, {"interactions": 100_000}),
    "merge": (merge.bench, {"requests": 200}),
    "serve": (serve.bench, {"users": 2_000, "items": 5_000, "impressions": 30_000, "requests": 200, "seconds": 3}),
    "soak": (soak.bench, {"users": 2_000, "items": 5_000, "impressions": 30_000, "seconds": 60, "swap_seconds": 15}),
    "refresh": (refresh.bench, {"users": 1_000, "impressions": 30_000, "shown": 1, "hours": 12, "seeds": 1}),
    "delay": (delay.bench, {"users": 1_000, "impressions": 30_000, "steps": 2, "seeds": 1}),
}
