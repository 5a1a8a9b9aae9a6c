"""L7 on the simulator: a ranker that is never trained again, daily, and every few hours, on a market of news.

Items are shown while they are fresh and differ much in quality, so what matters most is known of the last hours alone.
All three begin as one ranker of the days before, and are judged, before they learn of them, on the same impressions of
the days after. Daily and incremental go on in the same way from what they are; only how often differs. The features
are refitted before each window (a moved split recomputes no day), so ids enter and leave the vocabulary.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from models import RANKERS
from pipeline import lake
from pipeline.bench.delay import learn
from pipeline.config import Contract, Features, Fine, Market, Simulator, Split
from pipeline.evaluation.metrics import auc
from pipeline.evaluation.promotion import surprise
from pipeline.features import build
from pipeline.features.store import FeatureStore
from pipeline.ranking import fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import Champion, Known
from pipeline.sources import contract

POLICIES = ("stale", "daily", "incremental")
FIRST = Fine(model="flat_dnn", epochs=2, batch_size=512, learning_rate=0.003, patience=2)
ON = replace(FIRST, epochs=1, batch_size=128, learning_rate=0.001)
NEWS = Market(past_days=2, history_days=1, quality=1.5, policy_fresh=0.9, policy_quality=0.1)
IDS_ALONE = Features(statistics=(), rates=(), matches=(), behaviours={}, admit_after=10)
WITH_STATISTICS = Features(
    statistics=("user", "item", "category", "user+category"), windows=("1d", "all"), admit_after=10
)


def bench(
    users: int = 4_000,
    items: int = 2_000,
    impressions: int = 150_000,
    days: int = 10,
    shown: int = 2,
    hours: int = 6,
    seeds: int = 3,
    seed: int = 0,
    live: str = "no",
) -> dict[str, float]:
    """AUC and log loss of click over the last `shown` days but the very last, by policy: means over seeds, and how much
    the log loss falls from stale to daily to incremental, with the half-width of the 95 % interval of paired seeds.

    `live` "yes" adds statistics as of now to the features, which learn of new items by themselves.
    """
    features = WITH_STATISTICS if live == "yes" else IDS_ALONE
    source = partial(Simulator, users=users, items=items, impressions=impressions, days=days, market=NEWS)
    found = [
        compare(source(seed=seed), features, shown=shown, hours=hours, seed=seed) for seed in range(seed, seed + seeds)
    ]
    figures = {
        f"{name}_{policy}": float(np.mean([one[policy][name] for one in found]))
        for policy in POLICIES
        for name in ("auc", "log_loss")
    }
    for worse, better in pairwise(POLICIES):
        gains = np.array([one[worse]["log_loss"] - one[better]["log_loss"] for one in found])
        figures[f"gain_{better}_over_{worse}"] = float(gains.mean())
        if seeds > 1:
            half = student.ppf(0.975, seeds - 1) * gains.std(ddof=1) / np.sqrt(seeds)
            figures[f"gain_{better}_over_{worse}_half_width"] = float(half)
    return figures


def compare(source: Simulator, features: Features, *, shown: int, hours: int, seed: int) -> dict[str, dict[str, float]]:
    """AUC and log loss of click by policy on one market."""
    settings = Contract()
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        root = Path(place)
        (root / "events").mkdir()
        contract.write_events(source, settings, root / "events")
        windows = np.arange(source.days - 1 - shown, source.days - 1, hours / 24)
        champions: dict[str, Champion] = {}
        labels: list[np.ndarray] = []
        scores: dict[str, list[np.ndarray]] = {policy: [] for policy in POLICIES}
        for number, begin in enumerate(windows):
            store = _features(root, features, settings, source, begin, begin + hours / 24)
            encoder, now = Encoder(store), Known.of(store)
            window = store.log("validation")
            at_midnight = abs(begin - round(begin)) < 1e-9
            for policy in POLICIES:
                if not number:
                    champions[policy] = champions.get("stale") or learn(store, encoder, now, None, FIRST, seed)
                elif policy == "incremental" or (policy == "daily" and at_midnight):
                    champions[policy] = learn(store, encoder, now, champions[policy], ON, seed + number)
                model = _model(store, FIRST)
                champions[policy].into(model, now)
                scores[policy].append(fine.probabilities(model.eval(), encoder, window)[:, 0])
            labels.append(window.labels[:, 0])
    label = np.concatenate(labels)
    told = {policy: np.concatenate(parts) for policy, parts in scores.items()}
    return {
        policy: {"auc": auc(label, score), "log_loss": float(surprise(label, score).mean())}
        for policy, score in told.items()
    }


def _features(
    root: Path, features: Features, settings: Contract, source: Simulator, begin: float, end: float
) -> FeatureStore:
    """The features as of a window, from day `begin` of the log to day `end`: its rows are the validation slice."""
    split = Split(validation_days=end - begin, test_days=source.days - end)
    made = lake.stage(root, "features", f"{begin:.3f}")
    with made.writing() as folder:
        build.build(root / "events", folder, features=features, contract=settings, split=split, kept=root / "days")
    return FeatureStore.open(made.path)


def _model(store: FeatureStore, settings: Fine) -> nn.Module:
    torch.manual_seed(0)
    return RANKERS[settings.model](store.schema, **settings.options)
