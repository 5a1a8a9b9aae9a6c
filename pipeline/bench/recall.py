"""Every route fitted and asked on a simulated market: seconds, and recall of what users engaged with next."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pipeline.bench.market import features_of
from pipeline.config import Contract, Recall
from pipeline.recall import candidates, two_tower


def bench(users: int = 20_000, items: int = 5_000, impressions: int = 300_000, seed: int = 0) -> dict[str, float]:
    settings, tasks = Recall(), Contract().tasks
    with (
        features_of(users=users, items=items, impressions=impressions, seed=seed) as features,
        tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place,
    ):
        tower, out = Path(place) / "two_tower", Path(place) / "recall"
        tower.mkdir()
        out.mkdir()
        begun = time.perf_counter()
        two_tower.train(features, tower, positive="click", seed=seed, log=lambda metrics, epoch: None)
        trained = time.perf_counter()
        found = candidates.recall(
            features,
            {"two_tower": tower},
            out=out,
            moment="test",
            settings=settings,
            positive="click",
            tasks=tasks,
            requests=2_000,
        )
        seconds = {"train_seconds": trained - begun, "recall_seconds": time.perf_counter() - trained}
        return {**seconds, **{name: value for name, value in found.items() if name.startswith(("recall", "merged"))}}
