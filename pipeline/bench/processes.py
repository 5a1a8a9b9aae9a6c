"""Training on the speed workload by several processes of one thread each against one such process: rows a second,
encoding of the batches included, and the mean loss of the epoch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from models import RANKERS
from models import processes as others
from models.objective import objective
from pipeline.bench import workload
from pipeline.bench.train import TASKS
from pipeline.ranking.batches import Encoder
from pipeline.ranking.fit import Log, fit
from pipeline.ranking.launch import HERE, together
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import Stored, shuffled


def bench(
    rows: int = 200_000,
    batch_size: int = 4_096,
    seed: int = 0,
    runs: int = 1,
    tasks: str = "a,b,c,d",
    processes: int = 2,
) -> dict[str, float]:
    """An epoch of each of these tasks of `recfunnel bench train`, after one that is not counted, with the same batches
    for any number of processes; the median of so many runs of one and of several in turn.

    `…_times` is the ratio of rows a second, and `…_work` that of processor seconds for the same rows, which other work
    on the machine disturbs less: without waiting, `processes` over `…_work` is the most that `…_times` can be.
    """
    figures: dict[str, float] = {"rows": rows, "batch_size": batch_size}
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        folder = Path(place)
        workload.write(folder, rows=rows, seed=seed)
        for name in tasks.split(","):
            given = {"folder": folder, "out": folder / "out", "task": name, "batch_size": batch_size, "seed": seed}
            found: dict[int, list[dict[str, float]]] = {1: [], processes: []}
            for _ in range(runs):
                for count, measured in found.items():
                    measured.append(together(measure, given, log=_nothing, processes=count, machines=HERE))
            title = f"{name}_{TASKS[name].ranker}"
            middle = {
                count: {figure: median(one[figure] for one in measured) for figure in measured[0]}
                for count, measured in found.items()
            }
            figures |= {f"{title}_{count}_{key}": value for count, one in middle.items() for key, value in one.items()}
            alone, many = middle[1], middle[processes]
            figures[f"{title}_times"] = many["rows_per_second"] / alone["rows_per_second"]
            figures[f"{title}_work"] = many["processor_seconds"] / alone["processor_seconds"]
    return figures


def measure(folder: Path, out: Path, *, task: str, batch_size: int, seed: int, log: Log) -> dict[str, float]:  # noqa: ARG001
    """Rows a second, processor seconds in all processes and the loss of the second epoch."""
    torch.set_num_threads(1)
    chosen = TASKS[task]
    store = workload.open_store(folder, history=chosen.history, labels=chosen.labels)
    encoder = Encoder(store)
    records = encoder.records(workload.read_rows(store, workload.TRAIN))
    stored = Stored.write(folder / f"records-{others.place()}.bin", [records])
    torch.manual_seed(seed)
    losses: list[float] = []
    wall, processor = [0.0], [0.0]

    def validate(model: nn.Module) -> dict[str, float]:  # noqa: ARG001
        wall.append(time.perf_counter())
        processor.append(time.process_time())
        return {"none": 0.0}

    fit(
        RANKERS[chosen.ranker](store.schema, **chosen.options),
        shuffled(encoder, stored, size=batch_size, seed=seed),
        lambda model, batch: objective(model, batch, masked_bce),
        validate,
        steps=-(-len(stored) // batch_size),
        epochs=2,
        learning_rate=0.003,
        monitor="none",
        patience=2,
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    spent = others.total(torch.tensor(processor[2] - processor[1], dtype=torch.float64))
    return {
        "rows_per_second": len(stored) / (wall[2] - wall[1]),
        "processor_seconds": float(spent),
        "loss": losses[-1] if losses else 0.0,
    }


def _nothing(metrics: dict[str, float], epoch: int) -> None:
    """There is nothing to tell."""
