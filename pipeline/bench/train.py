"""Training on the speed workload, reading included: rows a second and click AUC of six rankers, and of peers beside
them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch._dynamo  # else the first optimiser imports it, in measured time; the peers' are made before
from torch import Tensor, nn

from models import RANKERS
from models.objective import objective
from models.two_tower import TwoTower
from pipeline.bench import workload
from pipeline.evaluation.metrics import auc
from pipeline.features.store import Columns, FeatureStore
from pipeline.ranking.batches import Batch, Encoder, in_order
from pipeline.ranking.fine import probabilities
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import Stored, shuffled
from pipeline.recall.losses import listwise
from pipeline.recall.sampling import Sampler

PEERS = Path(__file__).parent / "peers"
RIVALS = {"a": ("rechub", "librecommender"), "b": ("fuxi",), "c": ("rechub",), "e": ("librecommender",)}
TEMPERATURE = 0.2


@dataclass(frozen=True)
class Task:
    """A ranker of the zoo, or the two towers of recall, with its sizes."""

    ranker: str
    options: dict[str, Any] = field(default_factory=dict)
    history: bool = False
    labels: tuple[str, ...] = ("click",)
    learning_rate: float = 0.003


DEEP = (256, 128, 64)
TASKS = {
    "a": Task("deepfm", {"hidden": DEEP}),
    "b": Task("din", {"hidden": DEEP, "attention": 64}, history=True),
    "c": Task("mmoe", {"hidden": (256, 128)}, labels=workload.LABELS),
    "d": Task("shared_bottom", {"hidden": (256, 128), "by_domain": True}),
    "ds": Task("star", {"hidden": DEEP}),
    "e": Task("two_tower", {"width": 16, "hidden": DEEP}, history=True, learning_rate=0.01),
}


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock and of the processor, the click AUC of the test, and the share of the former in which the
    model waited for its batches."""

    wall: float
    processor: float
    auc: float
    waiting: float = 0.0


def bench(
    rows: int = 500_000,
    batch_size: int = 4_096,
    seed: int = 0,
    runs: int = 1,
    tasks: str = "a,b,c,d,ds,e",
    peers: str = "",
) -> dict[str, float]:
    """One epoch of each of the tasks, batch by batch; for each the median of so many runs, between which those of the
    peers lie. `peers` is a folder of virtual environments named as the scripts in `pipeline/bench/peers`; of those that
    are there, the fastest on each task is what `times_fastest_peer` is about.

    On a machine that others use too, the ratios of processor seconds say more than those of the clock's.
    """
    figures: dict[str, float] = {"rows": rows, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        folder = Path(place)
        workload.write(folder, rows=rows, seed=seed)
        count = {name: len(workload.read_rows(_store(folder, task), _file(task))) for name, task in TASKS.items()}
        for name in tasks.split(","):
            pythons = {rival: Path(peers) / rival / "bin" / "python" for rival in RIVALS.get(name, ()) if peers}
            pythons = {rival: python for rival, python in pythons.items() if python.exists()}
            own: list[Measured] = []
            theirs: dict[str, list[Measured]] = {rival: [] for rival in pythons}
            for _ in range(runs):
                own.append(measure(TASKS[name], folder, batch_size, seed))
                for rival, python in pythons.items():
                    theirs[rival].append(_peer(python, PEERS / f"{rival}.py", name, folder, batch_size))
            title = f"{name}_{TASKS[name].ranker}"
            figures |= _told(title, own, count[name])
            figures[f"{title}_waiting_share"] = median(one.waiting for one in own)
            for rival, measured in theirs.items():
                figures |= _told(f"{title}_{rival}", measured, count[name])
            if theirs:
                fastest = min(median(one.wall for one in measured) for measured in theirs.values())
                figures[f"{title}_times_fastest_peer"] = fastest / median(one.wall for one in own)
    return figures


def measure(task: Task, folder: Path, batch_size: int, seed: int) -> Measured:
    """Encoding the rows for reading out of core is part of what is measured."""
    wall, processor = time.perf_counter(), time.process_time()
    store = _store(folder, task)
    rows, encoder = workload.read_rows(store, _file(task)), Encoder(store)
    torch.manual_seed(seed)
    beside: Columns = {}
    if task.ranker == "two_tower":
        model: nn.Module = TwoTower(store.schema, **task.options)
        items = len(store.items["code_item_id"])
        sampler = Sampler.of(rows.item, np.arange(1, items), items)
        item = rows.item.astype(np.int64)
        beside = {"taken": item, "log_q": sampler.log_q(torch.from_numpy(item), batch_size, 0).numpy()}
    else:
        model = RANKERS[task.ranker](store.schema, **task.options)
    stored = Stored.write(folder / "records.bin", [encoder.records(rows, beside)])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(model, TwoTower):
            vectors = model.user(batch), model.item(batch)
            return listwise(*vectors, batch["taken"], batch["log_q"], temperature=TEMPERATURE)
        return objective(model, batch, masked_bce)

    waited = 0.0

    def batches(epoch: int) -> Iterator[Batch]:
        nonlocal waited
        asked = time.perf_counter()
        for batch in shuffled(encoder, stored, size=batch_size, seed=seed)(epoch):
            waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    fit(
        model,
        batches,
        loss,
        lambda model: {"none": 0.0},
        steps=-(-len(rows) // batch_size),
        rows=len(rows),
        epochs=1,
        learning_rate=task.learning_rate,
        monitor="none",
        log=lambda metrics, epoch: None,
    )
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    test = workload.read_rows(store, workload.TEST)
    if isinstance(model, TwoTower):
        with torch.inference_mode():
            scores = torch.cat([model(batch) for batch in in_order(encoder, test, size=batch_size)]).numpy()
    else:
        scores = probabilities(model, encoder, test)[:, 0]
    return Measured(wall, processor, auc(test.labels[:, 0], scores), waited / wall)


def _told(title: str, measured: list[Measured], rows: int) -> dict[str, float]:
    return {
        f"{title}_rows_per_second": rows / median(one.wall for one in measured),
        f"{title}_rows_per_processor_second": rows / median(one.processor for one in measured),
        f"{title}_auc": median(one.auc for one in measured),
    }


def _peer(python: Path, script: Path, task: str, folder: Path, batch_size: int) -> Measured:
    command = [str(python), str(script), task, str(folder), str(batch_size)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Measured(**json.loads(said.splitlines()[-1]))


def _store(folder: Path, task: Task) -> FeatureStore:
    return workload.open_store(folder, history=task.history, labels=task.labels)


def _file(task: Task) -> str:
    return workload.POSITIVES if task.ranker == "two_tower" else workload.TRAIN
