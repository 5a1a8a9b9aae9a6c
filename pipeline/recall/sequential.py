"""The sequential tower: self-attention over the history, trained with the sampled softmax
(`models.sequential.SelfAttentive`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.sequential import SelfAttentive
from pipeline.features.store import FeatureStore
from pipeline.ranking.fit import Log
from pipeline.recall import history_tower, losses
from pipeline.recall.history_tower import Training
from pipeline.recall.route import Route
from pipeline.recall.sampling import HARD
from pipeline.recall.snapshot import Snapshot


def train(
    source: Path | Snapshot,
    out: Path,
    *,
    positive: str,
    seed: int,
    log: Log,
    width: int = 128,
    layers: int = 1,
    heads: int = 2,
    dropout: float = 0.5,
    length: int = 50,
    start: float = 1.5,
    epochs: int = 7,
    batch_size: int = 64,
    learning_rate: float = 0.004,
    embedding_decay: float = 0.0,
    temperature: float = 1.0,
    loss: losses.Name = "listwise",
    negatives: int | None = None,
    hard: float = HARD,
    earlier: str = "",
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Train on the histories of a features folder or of a snapshot (`history_tower.train`)."""
    training = Training(
        length=length,
        start=start,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        embedding_decay=embedding_decay,
        temperature=temperature,
        loss=loss,
        negatives=negatives,
        hard=hard,
        earlier=earlier,
    )
    return history_tower.train(
        source,
        out,
        make,
        route="sequential",
        settings={"width": width, "layers": layers, "heads": heads, "dropout": dropout},
        training=training,
        positive=positive,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
    )


def fit(snapshot: Snapshot, folder: Path, *, model: Path, index: str = "auto") -> None:
    """Write the index of the available items' vectors, and the model beside it."""
    history_tower.fit(snapshot, folder, make, route="sequential", model=model, index=index)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    return history_tower.load(folder, make)


def make(settings: dict[str, Any]) -> SelfAttentive:
    return SelfAttentive(
        settings["items"],
        width=settings["width"],
        layers=settings["layers"],
        heads=settings["heads"],
        dropout=settings["dropout"],
        length=settings["length"],
    )
