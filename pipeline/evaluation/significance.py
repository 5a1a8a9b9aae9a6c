"""Is a difference more than noise? The paired bootstrap over users (Efron & Tibshirani 1993, ch. 6 and 13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["beats", "does not beat", "undecided"]
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean difference and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """ "beats" where the whole interval is above zero, "does not beat" where it is below, else "undecided"."""
        if self.low > 0:
            return "beats"
        return "does not beat" if self.high < 0 else "undecided"


def paired_bootstrap(
    difference: np.ndarray, unit: np.ndarray, *, resamples: int, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of `difference` (N,), units drawn whole and with replacement.

    `difference` is ours minus theirs on the same request, which pairs them; `unit` (N,) says whose it is, so that the
    requests of one user, who are not independent, stay together. NaN of no rows.
    """
    if len(difference) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    _, number, size = np.unique(unit, return_inverse=True, return_counts=True)
    total = np.bincount(number, difference)
    units = len(size)
    random = np.random.default_rng(seed)
    means = []
    for begin in range(0, resamples, step := max(1, CHUNK // units)):
        draws = min(step, resamples - begin)
        weight = random.multinomial(units, np.full(units, 1 / units), size=draws)
        means.append(weight @ total / (weight @ size))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(np.mean(difference)), float(low), float(high))
