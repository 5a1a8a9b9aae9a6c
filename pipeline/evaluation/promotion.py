"""A4 for a refreshed ranker: it must beat the champion, left as it was, on the newest rows, or the champion stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.evaluation.metrics import auc
from pipeline.evaluation.significance import paired_bootstrap
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import write_json
from pipeline.ranking import fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.fine import Ranker

SMALLEST = 1e-7


def contest(
    features: Path, challenger: Path, out: Path, *, champion: Path, positive: str, resamples: int, seed: int
) -> dict[str, float]:
    """Log loss of both rankers on the test slice's impressions, the champion carried over to these features, and the
    paired bootstrap over users of what the challenger gains. Labels that come late are held against the probability
    that they are known.

    Returns both log losses and AUCs, the gain with its interval, and `promoted`, 1 where the whole interval is above
    zero; the same goes to gate.json.
    """
    store = FeatureStore.open(features)
    encoder, rows = Encoder(store), store.log("test")
    place = store.schema.labels.index(positive)
    label = rows.labels[:, place]
    ours, theirs = fine.load(challenger), fine.carried(champion, store)
    known = ours.delays[positive].known(store.slices["end"] - rows.time) if positive in ours.delays else 1.0
    scores = {
        "champion": _scores(theirs, encoder, rows, positive),
        "challenger": _scores(ours, encoder, rows, positive),
    }
    losses = {name: surprise(label, score * known) for name, score in scores.items()}
    gain = paired_bootstrap(losses["champion"] - losses["challenger"], rows.user, resamples=resamples, seed=seed)
    told = {
        **{f"log_loss_{name}": float(loss.mean()) for name, loss in losses.items()},
        **{f"auc_{name}": auc(label, score) for name, score in scores.items()},
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "promoted": int(gain.low > 0),
    }
    write_json(out / "gate.json", told)
    return told


def surprise(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """−ln of the probability that was given to what happened: (N,)."""
    given = np.where(label > 0, probability, 1 - probability.astype(np.float64))
    return -np.log(np.maximum(given, SMALLEST))


def _scores(ranker: Ranker, encoder: Encoder, rows: Rows, positive: str) -> np.ndarray:
    return fine.probabilities(ranker.model, encoder, rows)[:, ranker.schema.labels.index(positive)]
