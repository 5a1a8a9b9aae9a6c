"""torch-rechub on the speed workload, to be run by a Python that has it: TASK FOLDER BATCH_SIZE.

Its faster path, a Parquet file streamed in the order of its rows. Prints seconds, reading included, their share of
processor time, and the click AUC of the test as JSON. (It cannot stream histories.)
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.data.dataset import ParquetIterableDataset
from torch_rechub.models.multi_task import MMOE
from torch_rechub.models.ranking import DeepFM
from torch_rechub.trainers import CTRTrainer, MTLTrainer

WIDTH, HIDDEN = 16, [256, 128, 64]
FILES = ("train.parquet", "test.parquet")
NUMBERS = ["price", "user_rate", "item_rate", "age", "distance", "noise"]
NO_COLUMN = {*NUMBERS, "time", "end", "length", "click", "conversion", "history"}


class Batches:
    """The batches of a file: its columns, and the labels (B,) or (B, 2)."""

    def __init__(self, path: Path, columns: list[str], labels: list[str], size: int) -> None:
        self.read = ParquetIterableDataset([str(path)], columns=[*columns, *labels], batch_size=size)
        self.labels = labels

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for batch in self.read:
            labels = torch.stack([batch.pop(name) for name in self.labels], dim=1)
            yield batch, labels if len(self.labels) > 1 else labels[:, 0]


def main(task: str, folder: Path, size: int) -> None:
    names = [name for name in pq.read_schema(folder / "train.parquet").names if name not in NO_COLUMN]
    labels = ["click", "conversion"] if task == "c" else ["click"]
    columns = [*names, *NUMBERS]
    sizes = {name: 1 + max(int(read_one(folder, file, name).max()) for file in FILES) for name in names}
    sparse = [SparseFeature(name, sizes[name] + 1, WIDTH) for name in names]
    dense = [DenseFeature(name) for name in NUMBERS]
    torch.manual_seed(0)
    adam = {"lr": 1e-3}
    if task == "a":
        model = DeepFM(sparse + dense, sparse, {"dims": HIDDEN})
    else:
        model = MMOE(sparse + dense, ["classification"] * 2, 4, {"dims": [256, 128]}, [{"dims": [64]}] * 2)
    if task == "c":
        trainer = MTLTrainer(model, ["classification"] * 2, optimizer_params=adam, n_epoch=1)
    else:
        trainer = CTRTrainer(model, optimizer_params=adam, n_epoch=1)

    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        trainer.train_one_epoch(Batches(folder / "train.parquet", columns, labels, size))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor

    net, scores, clicks = trainer.model.eval(), [], []
    with torch.no_grad():
        for batch, target in Batches(folder / "test.parquet", columns, labels, size):
            scores.append(net(batch).view(len(target), -1)[:, 0])
            clicks.append(target.view(len(target), -1)[:, 0])
    auc = roc_auc_score(torch.cat(clicks), torch.cat(scores))
    print(json.dumps({"wall": wall, "processor": processor, "auc": auc}))


def read_one(folder: Path, file: str, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(folder / file, columns=[name])[name])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
