"""torch-rechub on the speed workload, to be run by a Python that has it: TASK FOLDER BATCH_SIZE.

Prints seconds, reading included, their share of processor time, and the click AUC of the test as JSON.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.models.ranking import DIN, DeepFM
from torch_rechub.trainers import CTRTrainer, MTLTrainer
from torch_rechub.utils.data import DataGenerator

WIDTH, HIDDEN = 16, [256, 128, 64]
NUMBERS = ["price", "user_rate", "item_rate", "age", "distance", "noise"]
NO_COLUMN = {*NUMBERS, "time", "end", "length", "click", "conversion", "history"}


def main(task: str, folder: Path, size: int) -> None:
    names = [name for name in pq.read_schema(folder / "train.parquet").names if name not in NO_COLUMN]
    labels = ["click", "conversion"] if task == "c" else ["click"]

    def read(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        wanted = [*names, *(["history"] if task == "b" else NUMBERS)]
        table = pq.read_table(folder / name, columns=[*wanted, *labels])
        columns = {one: table[one].to_numpy() for one in wanted if one != "history"}
        if task == "b":
            columns["history"] = table["history"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return columns, np.stack([table[one].to_numpy() for one in labels], axis=1).squeeze()

    sizes = {name: 1 + max(int(read_one(folder, file, name).max()) for file in FILES) for name in names}
    sparse = [SparseFeature(name, sizes[name] + 1, WIDTH) for name in names]
    dense = [DenseFeature(name) for name in NUMBERS]
    torch.manual_seed(0)
    adam = {"lr": 1e-3}
    if task == "a":
        model = DeepFM(sparse + dense, sparse, {"dims": HIDDEN})
    elif task == "b":
        history = SequenceFeature("history", sizes["item_id"] + 1, WIDTH, pooling="concat", shared_with="item_id")
        item = [one for one in sparse if one.name == "item_id"]
        others = [one for one in sparse if one.name != "item_id"]
        model = DIN(others, [history], item, {"dims": HIDDEN}, {"dims": [64], "activation": "relu"})
    else:
        model = MMOE(sparse + dense, ["classification"] * 2, 4, {"dims": [256, 128]}, [{"dims": [64]}] * 2)
    if task == "c":
        trainer = MTLTrainer(model, ["classification"] * 2, optimizer_params=adam, n_epoch=1)
    else:
        trainer = CTRTrainer(model, optimizer_params=adam, n_epoch=1)

    wall, processor = time.perf_counter(), time.process_time()
    columns, target = read("train.parquet")
    loader = DataGenerator(columns, target).generate_dataloader(
        x_val=columns, y_val=target, x_test=columns, y_test=target, batch_size=size, num_workers=0
    )[0]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        trainer.train_one_epoch(loader)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor

    columns, target = read("test.parquet")
    net, scores = trainer.model.eval(), []
    with torch.no_grad():
        for begin in range(0, len(target), size):
            batch = {name: torch.from_numpy(values[begin : begin + size].copy()) for name, values in columns.items()}
            scores.append(net(batch).numpy().reshape(len(next(iter(batch.values()))), -1)[:, 0])
    clicks = target[:, 0] if target.ndim > 1 else target
    print(json.dumps({"wall": wall, "processor": processor, "auc": roc_auc_score(clicks, np.concatenate(scores))}))


FILES = ("train.parquet", "test.parquet")


def read_one(folder: Path, file: str, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(folder / file, columns=[name])[name])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
