"""L5 on the simulator: how right `convert` is on average where conversions arrive a day late, by how labels are asked.

Rankers are trained when the log has reached a moment, with labels as known then: at once on all of the log, or on the
log's first days and from there on what comes, step by step. Each way takes labels as they are, and as `delay` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import t as student

from models import RANKERS
from pipeline import lake
from pipeline.config import Contract, Features, Fine, Loss, Market, Simulator, Split
from pipeline.features import build
from pipeline.features.store import DAY, FeatureStore
from pipeline.ranking import fine, training
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import Champion, Known
from pipeline.sources import contract

TASK = "convert"
FEATURES = Features(
    statistics=("user", "item", "category"), windows=("all",), rates=("click", TASK), matches=(), admit_after=10
)
AS_THEY_ARE, CORRECTED = Loss(), Loss(delay=(TASK,))
FIRST = Fine(model="flat_dnn", epochs=2, batch_size=512, learning_rate=0.003, patience=2)
ON = replace(FIRST, epochs=1, batch_size=256, learning_rate=0.001)


def bench(
    users: int = 4_000,
    items: int = 2_000,
    impressions: int = 150_000,
    days: int = 8,
    conversion_hours: int = 24,
    steps: int = 4,
    seeds: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Predicted over true conversions of the log's last day: for all at once and step by step (`steps` of half a day),
    labels as they are (`naive`) and `corrected`. Means over seeds, with the half-width of the 95 % interval."""
    market = Market(conversion_hours=conversion_hours)
    source = partial(Simulator, users=users, items=items, impressions=impressions, days=days, market=market)
    found = pl.DataFrame([ratios(source(seed=seed), steps=steps, seed=seed) for seed in range(seed, seed + seeds)])
    figures = {}
    for name in found.columns:
        figures[name] = float(found[name].to_numpy().mean())
        if seeds > 1:
            half = student.ppf(0.975, seeds - 1) * found[name].to_numpy().std(ddof=1) / np.sqrt(seeds)
            figures[f"{name}_half_width"] = float(half)
    return figures


def ratios(source: Simulator, *, steps: int, seed: int) -> dict[str, float]:
    """Predicted over true conversions of the last day on one market."""
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        root = Path(place)
        (root / "events").mkdir()
        contract.write_events(source, Contract(), root / "events")
        stepwise: dict[str, Champion] = {}
        at_once: dict[str, Champion] = {}
        for number, store in enumerate(growing(root, source, steps)):
            encoder, now = Encoder(store), Known.of(store)
            for name, loss in (("naive", AS_THEY_ARE), ("corrected", CORRECTED)):
                settings = replace(ON if number else FIRST, loss=loss)
                stepwise[name] = learn(store, encoder, now, stepwise.get(name), settings, seed + number)
                if number == steps:
                    at_once[name] = learn(store, encoder, now, None, replace(FIRST, loss=loss), seed)
        last = features_of(root, root / "events", Split(validation_days=0.5, test_days=0.5), "last")
        encoder, begin = Encoder(last), last.slices["validation"]
        rows = last.log("validation", "test")
        times = pl.read_parquet(root / "events/events.parquet", columns=["time"])["time"].dt.epoch("us").to_numpy()
        truth = pl.read_parquet(root / "events/truth.parquet", columns=[TASK])[TASK].to_numpy()
        told = {}
        for kind, champions in (("at_once", at_once), ("stepwise", stepwise)):
            for name, champion in champions.items():
                model = RANKERS[FIRST.model](last.schema)
                champion.into(model, Known.of(last))
                predicted = fine.probabilities(model.eval(), encoder, rows)[:, last.schema.labels.index(TASK)]
                told[f"{kind}_{name}"] = float(predicted.mean() / truth[times >= begin].mean())
    return told


def growing(root: Path, source: Simulator, steps: int) -> Iterator[FeatureStore]:
    """The features of the log as it is known at each moment, the last of which is a day before its end."""
    log = pl.read_parquet(root / "events/events.parquet")
    begin = log["time"].dt.epoch("us").min()
    for step in range(steps + 1):
        moment = begin + round((source.days - 1 - (steps - step) / 2) * DAY)  # type: ignore[operator]
        events = root / f"events-{step}"
        events.mkdir()
        known = pl.col(f"{TASK}_time").dt.epoch("us") < moment
        log.filter(pl.col("time").dt.epoch("us") < moment).with_columns(
            pl.when(known).then(pl.col(TASK)).otherwise(0).cast(pl.Int8).alias(TASK),
            pl.when(known).then(pl.col(f"{TASK}_time")).alias(f"{TASK}_time"),
        ).write_parquet(events / "events.parquet")
        for path in (root / "events").glob("*.parquet"):
            if path.name not in ("events.parquet", "truth.parquet"):
                (events / path.name).symlink_to(path)
        yield features_of(root, events, Split(validation_days=1 / 24, test_days=1 / 24), f"step{step}")


def features_of(root: Path, events: Path, split: Split, name: str) -> FeatureStore:
    made = lake.stage(root, "features", name)
    with made.writing() as folder:
        build.build(events, folder, features=FEATURES, contract=Contract(), split=split)
    return FeatureStore.open(made.path)


def learn(
    store: FeatureStore, encoder: Encoder, now: Known, old: Champion | None, settings: Fine, seed: int
) -> Champion:
    """A ranker trained on, or anew where there is none, on what the train slice has that is new."""
    rows = store.log("train")
    prepared = training.prepared(store, encoder, settings, seed, before=old.known if old else None)
    model, fitted = fine.learn(
        encoder,
        store.schema,
        prepared,
        rows.take(slice(max(0, len(rows) - 1_000), len(rows))),
        settings=settings,
        seed=seed,
        log=lambda metrics, epoch: None,
        start=partial(old.into, now=now) if old else None,
    )
    prepared.remove()
    return Champion(model.model.state_dict(), now, fitted.memory)
