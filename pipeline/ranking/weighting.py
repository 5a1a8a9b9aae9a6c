"""Which rows of the log a ranker is trained on, how much each counts, and what puts its mean right afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.features.store import DAY, Rows
from pipeline.features.timeline import Integers, Timeline


def earlier_exposures(
    user: npt.NDArray[np.integer], item: npt.NDArray[np.integer], time: Integers, window: int = DAY
) -> Integers:
    """How often each row's item was shown to its user in the `window` µs before, by the rows themselves: (N,)."""
    key = user.astype(np.int64) << 32 | item.astype(np.int64)
    questions = Timeline.of(key, time).ask(key, time)
    return (questions.before() - questions.before(window))[questions.inverse]


def repeat_weights(
    user: npt.NDArray[np.integer], item: npt.NDArray[np.integer], time: Integers, strength: float
) -> npt.NDArray[np.float32]:
    """1 + strength · ln(1 + n) for a row whose user was shown its item n times within the day before: (N,).

    Repeated exposures are clicked less; counting more, they pull down what their users have had enough of (Pan et al.,
    Ads Recommendation in a Collapsed and Entangled World, KDD 2024, §6.2). `mean_shift` puts the mean right again.
    """
    return (1 + strength * np.log1p(earlier_exposures(user, item, time))).astype(np.float32)


def sample_negatives(rows: Rows, rate: float, seed: int | np.random.Generator) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The rows with every negative label kept with probability `rate`, and which of the rows given these are.

    One draw a row decides for all its tasks. A row with a positive stays, though its other labels may become unknown,
    so that each task's negatives are kept with the same probability whatever the other tasks say.
    """
    if rate == 1:
        return rows, np.ones(len(rows), dtype=bool)
    drawn = np.random.default_rng(seed).random(len(rows)) < rate
    labels = np.where((rows.labels == 0) & ~drawn[:, None], np.float32(np.nan), rows.labels)
    kept = drawn | ~np.isnan(labels).all(axis=1)
    return replace(rows, labels=labels).take(kept), kept


def mean_shift(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What to add to each task's logits (N, T) so that Σ σ(logit) = Σ label over the rows whose label is known: (T,).

    0 for a task of which only positives, only negatives or no rows at all are known.
    """
    tasks = zip(logits.T.astype(np.float64), labels.T.astype(np.float64), strict=True)
    known = [(logit[~np.isnan(label)], label[~np.isnan(label)].sum()) for logit, label in tasks]
    return np.array([_shift(logit, positives) for logit, positives in known], np.float32)


def _shift(logits: npt.NDArray[np.float64], positives: float) -> float:
    """The root lies within `reach`: on one side the sum of probabilities is under 1, on the other over N − 1."""
    from scipy.optimize import brentq
    from scipy.special import expit

    if not 0 < positives < len(logits):
        return 0.0
    reach = np.abs(logits).max() + np.log(len(logits))
    return float(brentq(lambda shift: expit(logits + shift).sum() - positives, -reach, reach))
