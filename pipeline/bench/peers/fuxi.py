"""FuxiCTR's DIN on the speed workload, to be run by a Python that has it: b FOLDER BATCH_SIZE.

Its layers and its training loop, fed with slices of shuffled columns: its own loaders, a Ray cluster for Parquet and a
row at a time for NumPy, take longer than that. Prints seconds, reading included, their share of processor time, and the
click AUC of the test as JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score

WIDTH, HIDDEN, ATTENTION, LENGTH = 16, [256, 128, 64], [64], 50
FILES = ("train.parquet", "test.parquet")
NUMBERS = ["price", "user_rate", "item_rate", "age", "distance", "noise"]
NO_COLUMN = {*NUMBERS, "time", "end", "length", "click", "conversion", "history"}
GIVEN = {"model_root": "", "metrics": ["AUC"], "verbose": 0}

Columns = dict[str, torch.Tensor]


class DIN(BaseModel):  # type: ignore[misc]
    def __init__(self, features: FeatureMap) -> None:
        super().__init__(features, **GIVEN)
        self.embed = FeatureEmbeddingDict(features, WIDTH)
        self.attend = DIN_Attention(WIDTH, ATTENTION)
        self.net = MLP_Block(WIDTH * len(features.features), HIDDEN, "ReLU", 1, "Sigmoid")
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()

    def forward(self, batch: Columns) -> Columns:
        given = self.get_inputs(batch)
        vectors = self.embed(given)
        vectors["history"] = self.attend(vectors["item_id"], vectors["history"], given["history"] > 0)
        return {"y_pred": self.net(torch.cat(list(vectors.values()), dim=1))}


def main(folder: Path, size: int) -> None:
    names = [name for name in pq.read_schema(folder / "train.parquet").names if name not in NO_COLUMN]
    sizes = {name: 1 + max(int(read_one(folder, file, name).max()) for file in FILES) for name in names}
    of_field = {"source": "", "type": "categorical", "padding_idx": 0}
    fields = [{name: {**of_field, "vocab_size": sizes[name]}} for name in names]
    fields += [{name: {"source": "", "type": "numeric"}} for name in NUMBERS]
    history = {**of_field, "type": "sequence", "feature_encoder": None, "share_embedding": "item_id"}
    fields.append({"history": {**history, "vocab_size": sizes["item_id"], "max_len": LENGTH}})
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "feature_map.json"
        told.write_text(json.dumps({"dataset_id": "speed", "labels": ["click"], "features": fields}))
        features = FeatureMap("speed", place)
        features.load(str(told), {"embedding_dim": WIDTH})
    torch.manual_seed(0)
    model = DIN(features)
    model._max_gradient_norm, model._total_steps, model._eval_steps, model._stop_training = 10.0, 0, sys.maxsize, False

    wall, processor = time.perf_counter(), time.process_time()
    columns = read(folder / "train.parquet", [*names, *NUMBERS])
    model.train_epoch(batches(columns, size, torch.randperm(len(columns["click"]))))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor

    columns = read(folder / "test.parquet", [*names, *NUMBERS])
    scores = model.predict(batches(columns, size, torch.arange(len(columns["click"]))))
    auc = roc_auc_score(columns["click"], scores)
    print(json.dumps({"wall": wall, "processor": processor, "auc": auc}))


def read(path: Path, names: list[str]) -> Columns:
    table = pq.read_table(path, columns=[*names, "history", "click"])
    columns = {name: torch.from_numpy(np.array(table[name].to_numpy())) for name in (*names, "click")}
    history = np.array(table["history"].combine_chunks().flatten().to_numpy())
    return {**columns, "history": torch.from_numpy(history).view(len(table), LENGTH)}


def batches(columns: Columns, size: int, order: torch.Tensor) -> Iterator[Columns]:
    for index in order.split(size):
        yield {name: values[index] for name, values in columns.items()}


def read_one(folder: Path, file: str, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(folder / file, columns=[name])[name])


if __name__ == "__main__":
    main(Path(sys.argv[2]), int(sys.argv[3]))
