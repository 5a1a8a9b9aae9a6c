"""The job of `recfunnel bench features`: raw events to features, what comes out of it, and when two results agree.

Read Parquet; ids to codes of a vocabulary; for user, item, category and user with category the impressions and the
smoothed click rate of the last hour, day, week and of all time, strictly before each row's own time; a user's last 50
clicked items; price and dwell in quantile buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.features.timeline import Integers

BEGIN = 1_700_000_000_000_000
DAYS, CATEGORIES = 60, 1_000
SIDES, NUMBERS = ("user", "item"), ("price", "dwell")
ENTITIES = ("user", "item", "category", "user+category")
WINDOWS = ("1h", "1d", "7d", "all")
PRIOR = (1.0, 5.0)
ADMIT_AFTER, LENGTH, PARTS = 5, 50, 32


@dataclass(frozen=True)
class Result:
    """Features of N events in the order of the file, to be asked for after the clock has stopped.

    `statistics(entity)` (N, 8): log1p of the impressions and click rate, window by window. `codes(side)`: of users or
    items, `buckets(number)`: (N,) each. `history(rows)`: the item ids of these rows' last clicks, oldest first.
    """

    statistics: Callable[[str], npt.NDArray[np.float32]]
    codes: Callable[[str], npt.NDArray[np.int32]]
    buckets: Callable[[str], npt.NDArray[np.int32]]
    history: Callable[[Integers], list[list[str]]]


def write_events(path: Path, events: int, seed: int) -> None:
    """Events by time to the second: Zipf-like users (62-bit ids) and items (text ids), a category to each item."""
    random = np.random.default_rng(seed)
    users, items = max(events // 20, 2), max(events // 50, 2)
    user, item = _zipf(random, users, 0.7, events), _zipf(random, items, 0.9, events)
    quality = random.normal(-1.5, 0.7, items)
    pl.DataFrame(
        {
            "time": pl.Series(BEGIN + np.sort(random.integers(0, DAYS * 86_400, events)) * 1_000_000).cast(
                pl.Datetime("us", "UTC")
            ),
            "user": random.integers(0, 1 << 62, users)[user],
            "item": pl.Series([f"i{number:09x}" for number in random.integers(0, 1 << 36, items)]).gather(item),
            "category": random.integers(0, CATEGORIES, items).astype(np.int32)[item],
            "domain": random.integers(0, 5, events).astype(np.int8),
            "price": random.lognormal(3, 1, events).astype(np.float32),
            "dwell": random.exponential(20, events).astype(np.float32),
            "click": (random.random(events) < 1 / (1 + np.exp(-quality[item]))).astype(np.int8),
        }
    ).write_parquet(path)


def _zipf(random: np.random.Generator, values: int, exponent: float, size: int) -> Integers:
    weights = np.cumsum((np.arange(values) + 50.0) ** -exponent)
    drawn: Integers = np.searchsorted(weights, random.random(size) * weights[-1])
    return drawn


def check_equal(result: Result, other: Result, seed: int = 0) -> None:
    """Raise AssertionError unless both say the same of every row; histories are compared for a thousand rows.

    Counts of impressions and buckets are the same number for number, rates but for the last bit of a float, and codes
    but for the order of values that occur equally often.
    """
    for entity in ENTITIES:
        one, two = result.statistics(entity), other.statistics(entity)
        _check(np.array_equal(_counts(one), _counts(two)), f"impressions by {entity}")
        _check(np.allclose(one, two, rtol=1e-6, atol=1e-7), f"click rates by {entity}")
    for side in SIDES:
        code, theirs = result.codes(side), other.codes(side)
        pairs = np.unique(code.astype(np.int64) << 32 | theirs)
        _check(len(pairs) == len(np.unique(code)) == len(np.unique(theirs)), f"values behind the codes of {side}")
        _check(np.array_equal(np.bincount(code), np.bincount(theirs)), f"order of the codes of {side}")
    for name in NUMBERS:
        _check(np.array_equal(result.buckets(name), other.buckets(name)), f"buckets of {name}")
    count = len(result.codes("user"))
    rows = np.random.default_rng(seed).integers(0, count, min(count, 1_000))
    _check(result.history(rows) == other.history(rows), "histories")


def _counts(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.rint(np.expm1(columns[:, ::2].astype(np.float64))).astype(np.int64)


def _check(equal: bool, what: str) -> None:
    if not equal:
        raise AssertionError(f"the two engines disagree about the {what}")
