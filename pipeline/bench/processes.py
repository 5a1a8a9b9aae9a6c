"""Training on the speed workload by several processes of one thread each against one such process: rows a second,
encoding of the batches included, and the mean loss of the epoch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from models import RANKERS
from models import processes as others
from models.objective import objective
from pipeline.bench import workload
from pipeline.bench.train import TASKS
from pipeline.ranking.batches import Encoder, shuffled
from pipeline.ranking.fit import Log, fit
from pipeline.ranking.launch import HERE, together
from pipeline.ranking.losses import masked_bce


def bench(
    rows: int = 200_000,
    batch_size: int = 4_096,
    seed: int = 0,
    runs: int = 1,
    tasks: str = "a,b,c,d",
    processes: int = 2,
) -> dict[str, float]:
    """An epoch of each of these tasks of `recfunnel bench train`, the same global batches for any number of processes;
    the median of so many runs of one and of several in turn. `…_times` is the ratio of rows a second, and `…_work` that
    of processor seconds for the same rows, which other work on the machine disturbs less: without waiting, `processes`
    over `…_work` is the most that `…_times` can be."""
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
    """Rows a second, processor seconds in all processes and the loss of an epoch."""
    torch.set_num_threads(1)
    chosen = TASKS[task]
    store = workload.open_store(folder, history=chosen.history, labels=chosen.labels)
    rows = workload.read_rows(store, workload.TRAIN)
    encoder = Encoder(store)
    torch.manual_seed(seed)
    losses: list[float] = []
    begun = time.process_time()
    fitted = fit(
        RANKERS[chosen.ranker](store.schema, **chosen.options),
        shuffled(encoder, rows, size=batch_size, seed=seed),
        lambda model, batch: objective(model, batch, masked_bce),
        lambda model: {"none": 0.0},
        steps=-(-len(rows) // batch_size),
        epochs=1,
        learning_rate=0.003,
        monitor="none",
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    spent = others.total(torch.tensor(time.process_time() - begun, dtype=torch.float64))
    return {
        "rows_per_second": len(rows) / fitted.seconds,
        "processor_seconds": float(spent),
        "loss": sum(losses),
    }


def _nothing(metrics: dict[str, float], epoch: int) -> None:
    """There is nothing to tell."""
