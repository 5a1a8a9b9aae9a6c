"""Training rows a second of every ranker, reading included."""

from __future__ import annotations

import time

import numpy as np
import torch

from models import RANKERS
from models.objective import objective
from pipeline.bench.market import features_of
from pipeline.features.store import FeatureStore
from pipeline.ranking.batches import Encoder, shuffled
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce


def bench(rows: int = 300_000, batch_size: int = 4_096, seed: int = 0) -> dict[str, float]:
    """One epoch over `rows` impressions, each ranker with its default sizes."""
    figures: dict[str, float] = {}
    with features_of(users=rows // 10, items=rows // 50, impressions=rows, seed=seed) as folder:
        store = FeatureStore.open(folder)
        encoder, log = Encoder(store), store.log("train")
        figures["rows"] = len(log)
        figures["events_per_row"] = float(np.mean(sum(log.lengths.values())))
        for name, ranker in RANKERS.items():
            torch.manual_seed(seed)
            begun = time.perf_counter()
            fit(
                ranker(store.schema),
                shuffled(encoder, log, size=batch_size, seed=seed),
                lambda model, batch: objective(model, batch, masked_bce),
                lambda model: {"none": 0.0},
                steps=-(-len(log) // batch_size),
                epochs=1,
                learning_rate=0.001,
                monitor="none",
                log=lambda metrics, epoch: None,
            )
            figures[f"{name}_rows_per_second"] = len(log) / (time.perf_counter() - begun)
    return figures
