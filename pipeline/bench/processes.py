"""Training on the speed workload by several processes of one thread each against one such process: rows a second,
encoding of the batches included, and the mean loss of the epoch."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from models import RANKERS
from models import processes as others
from models.objective import objective
from pipeline.bench import workload
from pipeline.bench.train import TASKS
from pipeline.config import Machines
from pipeline.lake import write_json
from pipeline.ranking.batches import Encoder, shuffled
from pipeline.ranking.fit import fit
from pipeline.ranking.launch import launch, process_group
from pipeline.ranking.losses import masked_bce

JOB, TOLD = "job.json", "told.json"


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock, and of the processor in all processes."""

    seconds: float
    processor: float
    loss: float
    rows: int


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
    found: dict[tuple[str, int], list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        folder = Path(place)
        workload.write(folder, rows=rows, seed=seed)
        write_json(folder / JOB, {"tasks": tasks, "batch_size": batch_size, "seed": seed})
        for _ in range(runs):
            for count in (1, processes):
                launch("pipeline.bench.processes", folder / JOB, processes=count, machines=Machines())
                for name, told in json.loads((folder / TOLD).read_text()).items():
                    found.setdefault((name, count), []).append(Measured(**told))
    for (name, count), measured in found.items():
        title = f"{name}_{TASKS[name].ranker}"
        speed = measured[0].rows / median(one.seconds for one in measured)
        figures[f"{title}_{count}_rows_per_second"] = speed
        figures[f"{title}_{count}_processor_seconds"] = median(one.processor for one in measured)
        figures[f"{title}_{count}_loss"] = measured[0].loss
        if count > 1:
            alone = f"{title}_1"
            figures[f"{title}_times"] = speed / figures[f"{alone}_rows_per_second"]
            work = figures[f"{title}_{count}_processor_seconds"] / figures[f"{alone}_processor_seconds"]
            figures[f"{title}_work"] = work
    return figures


def measure(name: str, folder: Path, batch_size: int, seed: int) -> Measured:
    task = TASKS[name]
    store = workload.open_store(folder, history=task.history, labels=task.labels)
    rows = workload.read_rows(store, workload.TRAIN)
    torch.manual_seed(seed)
    losses: list[float] = []
    begun = time.process_time()
    fitted = fit(
        RANKERS[task.ranker](store.schema, **task.options),
        shuffled(Encoder(store), rows, size=batch_size, seed=seed),
        lambda model, batch: objective(model, batch, masked_bce),
        lambda model: {"none": 0.0},
        steps=-(-len(rows) // batch_size),
        epochs=1,
        learning_rate=0.003,
        monitor="none",
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    processor = others.total(torch.tensor(time.process_time() - begun, dtype=torch.float64))
    return Measured(fitted.seconds, float(processor), sum(losses), len(rows))


@record
def main(job: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads(job.read_text())
    with process_group():
        torch.set_num_threads(1)
        found = {
            name: asdict(measure(name, job.parent, asked["batch_size"], asked["seed"]))
            for name in asked["tasks"].split(",")
        }
        if others.place() == 0:
            write_json(job.with_name(TOLD), found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
