"""Memory over one long epoch of training: what the process holds at a tenth, a half and the end of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from models import RANKERS
from models.objective import objective
from pipeline.bench import workload
from pipeline.features.store import Rows
from pipeline.ranking.batches import Batch, Encoder, Records
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import Stored, shuffled

STATUS = Path("/proc/self/status")
SHARES = (0.1, 0.5, 1.0)


def bench(
    rows: int = 50_000_000, distinct: int = 500_000, ranker: str = "lr", batch_size: int = 16_384, seed: int = 0
) -> dict[str, float]:
    """An epoch of records that repeat `distinct` impressions of the speed workload, every repetition in another order.

    `resident_mib_…` is what the process holds (`VmRSS` of Linux) after so many hundredths of the steps, `records_gib`
    the file that the rows are read from.
    """
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        folder = Path(place)
        workload.write(folder, rows=distinct, seed=seed)
        store = workload.open_store(folder, history=False, labels=("click",))
        encoder = Encoder(store)
        stored = Stored.write(
            folder / "records.bin", repeated(encoder, workload.read_rows(store, workload.TRAIN), rows)
        )
        steps = -(-len(stored) // batch_size)
        asked = {max(1, round(share * steps)): share for share in SHARES}
        resident: dict[str, float] = {}

        def batches(epoch: int) -> Iterator[Batch]:
            for step, batch in enumerate(shuffled(encoder, stored, size=batch_size, seed=seed)(epoch), start=1):
                yield batch
                if step in asked:
                    resident[f"resident_mib_{asked[step]:.0%}".rstrip("%")] = resident_mib()

        torch.manual_seed(seed)
        wall, processor = time.perf_counter(), time.process_time()
        fit(
            RANKERS[ranker](store.schema),
            batches,
            lambda model, batch: objective(model, batch, masked_bce),
            lambda model: {"none": 0.0},
            steps=steps,
            rows=len(stored),
            epochs=1,
            learning_rate=0.003,
            monitor="none",
            log=lambda metrics, epoch: None,
        )
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return {
            "rows": len(stored),
            "records_gib": stored.path.stat().st_size / 2**30,
            **resident,
            "rows_per_second": len(stored) / wall,
            "rows_per_processor_second": len(stored) / processor,
        }


def repeated(encoder: Encoder, rows: Rows, count: int) -> Iterator[Records]:
    """The rows as records, over and over, until there are so many."""
    records, random = encoder.records(rows), np.random.default_rng(0)
    for begin in range(0, count, len(records)):
        yield random.permutation(records)[: count - begin]


def resident_mib() -> float:
    """What this process holds now."""
    told = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(told["VmRSS"].split()[0]) / 2**10
