"""F3: encodings of numbers, fitted on training rows only.

A missing or infinite number becomes the encoding's default: 0 for `log1p`, the middle 0.5 for `cdf`, code 0 for a
bucket.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MAXIMUM_STRENGTH = 1_000.0
BLOCK = 1 << 14
FEW_CUTS = 128


def log1p(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """sign(x) · log(1 + |x|): compresses long tails on both sides."""
    numbers = np.asarray(values, np.float64)
    encoded = np.sign(numbers) * np.log1p(np.abs(numbers))
    return np.where(np.isfinite(numbers), encoded, 0.0).astype(np.float32)


def fit_quantiles(values: npt.ArrayLike, parts: int) -> Floats:
    """The distinct inner quantiles that cut the finite values into at most `parts` parts of equal weight.

    The i-th is the least value such that i / parts of all are not above it.
    """
    ordered = np.sort(np.asarray(values))
    ordered = ordered[slice(np.searchsorted(ordered, -np.inf, side="right"), np.searchsorted(ordered, np.inf))]
    if len(ordered) == 0:
        return np.empty(0)
    places = -(-len(ordered) * np.arange(1, parts) // parts) - 1
    return np.unique(ordered[places].astype(np.float64))


def bucket(values: npt.ArrayLike, quantiles: Floats) -> npt.NDArray[np.int32]:
    """Categorical codes 1 … len(quantiles) + 1; 0 for missing. A value equal to a cut belongs to the part below it."""
    numbers = np.asarray(values)
    codes = np.empty(len(numbers), np.int32)
    for begin in range(0, len(numbers), BLOCK):
        part = numbers[begin : begin + BLOCK].astype(np.float64)
        codes[begin : begin + BLOCK] = np.where(np.isfinite(part), 1 + _cuts_below(part, quantiles), 0)
    return codes


def _cuts_below(numbers: Floats, cuts: Floats) -> npt.NDArray[Any]:
    """How many cuts lie below each number. A few comparisons of all numbers are faster than searches that branch."""
    if len(cuts) > FEW_CUTS:
        return np.searchsorted(cuts, numbers)
    below = np.zeros(len(numbers), np.uint8)
    for cut in cuts:
        below += (numbers > cut).view(np.uint8)
    return below


def fit_cdf(values: npt.ArrayLike, points: int = 1_000) -> tuple[Floats, Floats]:
    """Support points of the empirical distribution: distinct quantiles and the share of values at or below each."""
    numbers = np.sort(np.asarray(values, np.float64)[np.isfinite(values)])
    if len(numbers) == 0:
        return np.empty(0), np.empty(0)
    support = np.unique(np.quantile(numbers, np.linspace(0, 1, points), method="inverted_cdf"))
    return support, np.searchsorted(numbers, support, side="right") / len(numbers)


def cdf(values: npt.ArrayLike, support: Floats, shares: Floats) -> npt.NDArray[np.float32]:
    """The share of the fitted values at or below each value, in [0, 1], linear between the support points."""
    numbers = np.asarray(values, np.float64)
    if len(support) == 0:
        return np.full(numbers.shape, 0.5, np.float32)
    encoded = np.interp(numbers, support, shares, left=0.0)
    return np.where(np.isfinite(numbers), encoded, 0.5).astype(np.float32)


def fit_rate(positives: npt.ArrayLike, shows: npt.ArrayLike, keys: npt.ArrayLike = 1) -> tuple[float, float]:
    """(a, b) such that (positives + a) / (shows + b) shrinks a key's rate towards the mean of all keys.

    Each pair of positives and shows stands for so many `keys`. a = mean · b. The strength b, between 1 and 1000,
    follows from how much likelier two impressions of one key are to agree than two of different keys (the
    beta-binomial's intraclass correlation 1 / (b + 1), by the method of moments of Kleinman, "Proportions with
    extraneous variance", 1973). Keys shown once say nothing of that and are left out: often their mean is another,
    since what is shown again is what was liked.
    """
    counts, sizes = np.asarray(positives, np.float64), np.asarray(shows, np.float64)
    weights = np.broadcast_to(np.asarray(keys, np.float64), sizes.shape)
    positive, total = (weights * counts).sum(), (weights * sizes).sum()
    if not 0 < positive < total:
        return float((positive + 0.5) / (total + 1)), 1.0
    counts, sizes, weights = counts[sizes > 1], sizes[sizes > 1], weights[sizes > 1]
    repeated = (weights * sizes).sum()
    mean = (weights * counts).sum() / max(repeated, 1)
    chance = mean * (1 - mean)
    strength = MAXIMUM_STRENGTH
    if weights.sum() > 1 and chance > 0:
        free = weights.sum() - 1
        between = (weights * sizes * (counts / sizes - mean) ** 2).sum()
        excess = (between - free * chance) / (chance * (repeated - (weights * sizes**2).sum() / repeated - free))
        if excess > 0:
            strength = float(np.clip(1 / excess - 1, 1.0, MAXIMUM_STRENGTH))
    return float(positive / total) * strength, strength


def shrink(positives: Floats, shows: Floats, a: float | Floats, b: float | Floats) -> Floats:
    """The smoothed rate (positives + a) / (shows + b)."""
    return (positives + a) / (shows + b)
