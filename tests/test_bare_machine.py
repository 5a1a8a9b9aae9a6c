"""Training on a machine with torch, numpy and pyarrow alone: the loop and its batches may import nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = (
    *("polars", "faiss", "prefect", "mlflow", "numba", "scipy", "pydantic", "rich", "xxhash"),
    *("safetensors", "lightgbm", "optuna", "matplotlib", "fastapi", "typer", "sklearn", "pandas", "ray"),
)


def main() -> None:
    """Fit a ranker without histories on rows of a store, batch by batch."""
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]

    import numpy as np
    import torch

    from models import RANKERS
    from models.objective import objective
    from models.schema import Field, Schema
    from pipeline.features.store import FeatureStore, Recipe
    from pipeline.ranking.batches import Encoder
    from pipeline.ranking.fit import fit
    from pipeline.ranking.losses import masked_bce
    from pipeline.ranking.stream import Stored, shuffled

    fields = Field("user_id", 13, "user"), Field("item_id", 2, "item"), Field("domain", 2, "context")
    schema = Schema(fields, (), (), ("click",), ("home",))
    store = FeatureStore(
        folder=Path(),
        schema=schema,
        slices={},
        recipe=Recipe((), (), (), (), False, {}, {}),
        users={"code_user_id": np.arange(13)},
        items={"code_item_id": np.arange(2)},
        behaviours={},
        events={name: np.zeros(0, np.int64) for name in ("user", "item", "domain", "time", "shows")},
    )
    one = np.ones(12, np.int64)
    rows = store.rows(np.arange(1, 13), one, one * 0, one)
    rows.labels[:, 0] = rows.user % 2
    losses: list[float] = []
    torch.manual_seed(0)
    encoder = Encoder(store)
    stored = Stored.write(Path(sys.argv[1]) / "records.bin", [encoder.records(rows)])
    fit(
        RANKERS["flat_dnn"](schema),
        shuffled(encoder, stored, size=4, seed=0),
        lambda model, batch: objective(model, batch, masked_bce),
        lambda model: {"score": 0.0},
        steps=3,
        epochs=20,
        patience=20,
        learning_rate=0.01,
        monitor="score",
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    assert losses[-1] < losses[0] / 2, losses


def test_a_ranker_is_trained(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
