"""How far apart two days' values of a feature are, and how far chance alone would have them.

The population stability index is Jeffreys' divergence of two histograms, Σ (p - q) · ln(p / q); above .25 it is
usually taken for a shift that matters (Siddiqi, Credit Risk Scorecards, 2006). Without any shift it is not 0: for n and
m independent draws in B bins, PSI / (1/n + 1/m) nearly follows χ² with B - 1 degrees of freedom, whose mean is B - 1
(Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14(4),
2020). A hundred draws in ten bins have .09 on average against a large sample. What is compared with a threshold is
therefore what chance does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from pipeline.features.numeric import fit_quantiles

DECILES = 10
BARS = 24
COMMON = 0.01
CHANCE = 1e-6
EMPTY = 0.5

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def psi(counts: npt.ArrayLike, reference: npt.ArrayLike) -> Floats:
    """The index of histograms (…, B) against others (…, B); shapes broadcast.

    Half a row is added to every bin that either side has rows in, so that an empty one has a logarithm; bins that are
    empty on both sides do not count.
    """
    here, there = np.broadcast_arrays(np.asarray(counts, np.float64), np.asarray(reference, np.float64))
    used = (here + there) > 0
    p, q = ((side + EMPTY) * used for side in (here, there))
    p, q = (side / np.maximum(side.sum(axis=-1, keepdims=True), EMPTY) for side in (p, q))
    ratio = np.divide(p, q, out=np.ones_like(p), where=used)
    return np.asarray(((p - q) * np.log(ratio)).sum(axis=-1))


def psi_by_chance(counts: npt.ArrayLike, reference: npt.ArrayLike, n: npt.ArrayLike, m: npt.ArrayLike) -> Floats:
    """What the index of two histograms (…, B) exceeds once in a million times if both come from one distribution.

    n, m (…): how many independent draws the sides amount to (`effective_size`).
    """
    bins = ((np.asarray(counts) + np.asarray(reference)) > 0).sum(axis=-1)
    return np.asarray(chi2.isf(CHANCE, np.maximum(bins - 1, 1)) * _spread(n, m))


def share_by_chance(share: npt.ArrayLike, reference: npt.ArrayLike, n: npt.ArrayLike, m: npt.ArrayLike) -> Floats:
    """How far two samples' shares lie apart once in a million times if there is no difference (normal approximation).

    The common share is estimated with half a success and half a failure more on either side.
    """
    n, m = np.asarray(n, np.float64), np.asarray(m, np.float64)
    common = (np.asarray(share) * n + np.asarray(reference) * m + 2 * EMPTY) / (n + m + 4 * EMPTY)
    return np.asarray(norm.isf(CHANCE) * np.sqrt(common * (1 - common) * _spread(n, m)))


def effective_size(keys: npt.NDArray[np.integer]) -> float:
    """How many independent rows a sample is worth whose rows with one key (N,) are alike: (Σc)² / Σc² over the keys'
    counts c (Kish, Survey Sampling, 1965, §8.2)."""
    counts = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / max((counts**2).sum(), 1))


@dataclass(frozen=True, eq=False)
class Categories:
    """Bins of a categorical feature with codes 0 … C-1: unknown (code 0), one each for the codes that at least 1 % of
    the training rows have (`common`, the most frequent first), and the rest. `bin` (C,) is the bin of each code."""

    bin: npt.NDArray[np.int64]
    common: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, counts: Counts) -> Categories:
        """From the training rows' counts of the codes (C,)."""
        common = np.flatnonzero(counts >= max(1, COMMON * counts.sum()))
        common = common[common > 0]
        common = common[np.argsort(-counts[common], kind="stable")]
        bins = np.full(len(counts), len(common) + 1)
        bins[common] = np.arange(1, len(common) + 1)
        bins[0] = 0
        return cls(bins, common)

    @property
    def size(self) -> int:
        return len(self.common) + 2

    @property
    def unknown(self) -> int:
        return 0

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """The bin of the index that each bin belongs to (size,)."""
        return np.arange(self.size)

    def count(self, codes: npt.NDArray[Any]) -> Counts:
        """How many of the codes (N,) are in each bin (size,)."""
        tally = np.bincount(codes, minlength=len(self.bin))
        return np.bincount(self.bin, tally, minlength=self.size).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Bins of a number: the union of the index's cuts and of the picture's, and one bin more for missing values.

    Cuts are ascending; a value equal to a cut belongs to the part below it. `deciles` are the index's: those of the
    training rows, and where a decile is a value of its own weight, such as a zero that half of the rows have, another
    cut just below it, so that it has a bin for itself. `bars` are the picture's: the values themselves if they are few
    (`distinct`), else cuts of equal distance between the first and the last half per cent.
    """

    deciles: npt.NDArray[np.float32]
    bars: npt.NDArray[np.float32]
    distinct: bool

    @classmethod
    def fit(cls, values: npt.NDArray[np.float32]) -> Intervals:
        """From training rows' values; NaN is a missing one."""
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(np.empty(0, np.float32), np.empty(0, np.float32), True)
        cuts = fit_quantiles(known, DECILES).astype(np.float32)
        weights = np.array([(known == cut).mean() for cut in cuts])
        own = cuts[weights >= 1 / DECILES]
        deciles = np.unique(np.concatenate([cuts, np.nextafter(own, np.float32(-np.inf))]))
        values = np.unique(known)
        if len(values) <= BARS:
            return cls(deciles, values, True)
        low, high = np.quantile(known, [0.005, 0.995])
        return cls(deciles, np.unique(np.linspace(low, high, BARS - 1).astype(np.float32)), False)

    @cached_property
    def edges(self) -> npt.NDArray[np.float32]:
        return np.union1d(self.deciles, self.bars)

    @property
    def size(self) -> int:
        return len(self.edges) + 2

    @property
    def unknown(self) -> int:
        """The bin of missing values."""
        return self.size - 1

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """The bin of the index that each bin belongs to (size,)."""
        return self._within(self.deciles)

    @property
    def pictured(self) -> npt.NDArray[np.int64]:
        """The bar of the picture that each bin belongs to (size,)."""
        return self._within(self.bars)

    def count(self, values: npt.NDArray[Any]) -> Counts:
        """How many of the values (N,), ascending with missing ones at their end, are in each bin (size,)."""
        known = np.searchsorted(values, np.float32(np.nan))
        until = np.searchsorted(values[:known], self.edges, side="right")
        return np.diff([0, *until, known, len(values)])

    def _within(self, cuts: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.searchsorted(cuts, self.edges), [len(cuts), len(cuts) + 1]])


@dataclass(frozen=True, eq=False)
class Histogram:
    """A feature's bins, its counts on the training rows (B,) and on every day (D, B), and, of a categorical one, what
    its common codes stand for."""

    bins: Categories | Intervals
    train: Counts
    daily: Counts
    common: list[str]


def grouped(counts: Counts, groups: npt.NDArray[np.int64]) -> Counts:
    """Counts (D, B) summed over the bins of each group: (D, groups)."""
    member = groups[:, None] == np.arange(groups.max() + 1)
    return np.asarray(counts @ member)


def _spread(n: npt.ArrayLike, m: npt.ArrayLike) -> Floats:
    return 1 / np.maximum(n, 1) + 1 / np.maximum(m, 1)
