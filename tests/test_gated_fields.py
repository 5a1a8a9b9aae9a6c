"""A world in which one pair of columns matters: what a cross of it is worth, and that a trained gate finds it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from event_tables import CONTRACT, FEATURES, write_events
from torch import nn

from pipeline import lake
from pipeline.config import Crosses, Fine, Split
from pipeline.diagnostics.gated_fields import by_gate
from pipeline.evaluation.metrics import auc
from pipeline.features.build import build
from pipeline.features.store import FeatureStore
from pipeline.ranking import fine, training
from pipeline.ranking.batches import Encoder, in_order

COLUMNS = ("segment", "age", "category", "tag")


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    """Odd segments click on even categories and even ones on odd: with probability .8, else .2."""
    folder = write_events(tmp_path_factory.mktemp("planted") / "events", events=8_000)
    names = [("user", "segment"), ("item", "category")]
    log = pl.read_parquet(folder / "events.parquet")
    segment, category = (
        log.join(pl.read_parquet(folder / f"{side}s.parquet"), on=f"{side}_id", how="left", maintain_order="left")[name]
        for side, name in names
    )
    likely = (segment.cast(pl.Int64) + category.cast(pl.Int64)) % 2 == 1
    chance = np.where(likely.to_numpy(), 0.8, 0.2)
    click = (np.random.default_rng(0).random(len(chance)) < chance).astype(np.int8)
    log.with_columns(click=pl.Series(click)).write_parquet(folder / "events.parquet")
    return folder


def store(events: Path, out: Path, crosses: Crosses) -> FeatureStore:
    features = replace(FEATURES, crosses=crosses, statistics=("user",), windows=("all",))
    made = lake.stage(out, "features", "planted")
    with made.writing() as folder:
        build(events, folder, features=features, contract=CONTRACT, split=Split())
    return FeatureStore.open(made.path)


def trained(store: FeatureStore, model: str) -> nn.Module:
    encoder = Encoder(store)
    settings = Fine(model=model, epochs=3, learning_rate=0.01, batch_size=128, patience=3)
    return fine.learn(
        encoder,
        store.schema,
        training.prepared(store, encoder, settings, seed=0),
        store.log("validation"),
        settings=settings,
        seed=0,
        log=lambda *_: None,
    )[0]


def click_auc(store: FeatureStore) -> float:
    rows = store.log("test")
    return auc(rows.labels[:, 0], fine.probabilities(trained(store, "lr"), Encoder(store), rows)[:, 0])


def test_the_cross_that_is_chosen_gives_a_linear_model_what_it_cannot_see(events, tmp_path):
    crossed = store(events, tmp_path / "crossed", Crosses(columns=COLUMNS, keep=1))
    assert [pair.name for pair in crossed.crosses] == ["segment*category"]
    assert click_auc(crossed) > click_auc(store(events, tmp_path / "plain", Crosses())) + 0.05


def test_a_trained_gate_finds_the_pair(events, tmp_path):
    pairs = tuple(f"{left}*{right}" for left, right in combinations(COLUMNS, 2))
    all_pairs = store(events, tmp_path / "all", Crosses(pairs=pairs))
    model = trained(all_pairs, "senet")
    weights = by_gate(model.model, all_pairs.schema, in_order(Encoder(all_pairs), all_pairs.log("train"), size=4_096))
    first, second, *_ = weights.items()
    assert set(weights) == {field.name for field in all_pairs.schema.fields}
    assert first[0] == "segment*category"
    assert first[1] > 1.2 * second[1]
