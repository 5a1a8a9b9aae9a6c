"""LibRecommender on the speed workload, to be run by a Python that has it: TASK FOLDER BATCH_SIZE.

Prints seconds, reading included, their share of processor time, and the click AUC of the test as JSON; of the two
towers among users and items it was trained on.
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}  # needs tf-keras beside TensorFlow

import pandas as pd
from libreco.algorithms import DeepFM, TwoTower
from libreco.data import DatasetFeat
from sklearn.metrics import roc_auc_score

WIDTH, HIDDEN = 16, (256, 128, 64)
NUMBERS = ["price", "user_rate", "item_rate", "age", "distance", "noise"]
USER = ["gender", "age_group", "city", "job", "device"]
ITEM = ["category", "brand", "seller", "tag", "level"]
CONTEXT = ["domain", "hour", "weekday", "place", "net", "version", "ad", "word"]


def main(task: str, folder: Path, size: int) -> None:
    file, context, numbers = ("positives.parquet", [], []) if task == "e" else ("train.parquet", CONTEXT, NUMBERS)
    columns = [*USER, *ITEM, *context, *numbers]
    shared = {"embed_size": WIDTH, "n_epochs": 1, "lr": 1e-3, "batch_size": size, "hidden_units": HIDDEN}

    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train, known = DatasetFeat.build_trainset(
            read(folder / file, columns),
            user_col=[*USER, *context, *numbers],
            item_col=ITEM,
            sparse_col=[*USER, *ITEM, *context],
            dense_col=numbers or None,
        )
        if task == "e":
            softmax = {"loss_type": "softmax", "norm_embed": True, "temperature": 0.05}
            model = TwoTower("ranking", known, use_bn=False, seed=0, **softmax, **shared)
        else:
            model = DeepFM("ranking", known, use_bn=False, seed=0, **shared)
        model.fit(train, neg_sampling=task == "e", verbose=0)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor

    test = read(folder / "test.parquet", columns)
    test = test[test["user"].isin(known.user2id) & test["item"].isin(known.item2id)]
    if task == "e":
        scores = model.predict(test["user"].to_numpy(), test["item"].to_numpy())
    else:
        from libreco.prediction import predict_data_with_feats

        scores = predict_data_with_feats(model, test, batch_size=8_192)
    auc = roc_auc_score(test["label"], scores)
    print(json.dumps({"wall": wall, "processor": processor, "auc": auc}))


def read(path: Path, columns: list[str]) -> pd.DataFrame:
    table = pd.read_parquet(path, columns=["user_id", "item_id", "click", *columns])
    return table.rename(columns={"user_id": "user", "item_id": "item", "click": "label"})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
