"""F7: how often something was shown, and how often it was clicked, as of each row's own moment.

An impression sees the events strictly before its own time: never itself, never its neighbours of the same instant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.features.numeric import shrink
from pipeline.features.timeline import Integers, Questions, Timeline

Number = float | npt.NDArray[np.float64]
UNITS = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
ALL = "all"


def window_length(window: str) -> int | None:
    """Microseconds of a window such as "1h", "7d" or "30m"; None for "all". Raises ValueError for anything else."""
    if window == ALL:
        return None
    match = re.fullmatch(r"([1-9]\d*)([mhd])", window)
    if match is None:
        raise ValueError(f'{window!r} is not a window; write "30m", "1h", "7d" or "all"')
    return int(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class Counter:
    """What happened to every key over time: `totals` (N + 1, K) are running sums along the timeline, a column's after
    one another in memory."""

    timeline: Timeline
    totals: npt.NDArray[np.int64]

    @classmethod
    def of(cls, keys: Integers, times: Integers, values: npt.NDArray[np.integer]) -> Counter:
        """The counter of N events with keys (N,), times in microseconds (N,) and 0/1 values (N, K)."""
        timeline = Timeline.of(keys, times)
        totals = np.zeros((len(values) + 1, values.shape[1]), np.int64, order="F")
        for column, value in zip(totals.T, values.T, strict=True):
            np.cumsum(value[timeline.order], out=column[1:])
        return cls(timeline, totals)


def as_of(counter: Counter, keys: Integers, times: Integers, windows: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Sums of the values of each key over [time - window, time): (Q, windows, K)."""
    questions = counter.timeline.ask(keys, times)
    counts = np.empty((len(keys), len(windows), counter.totals.shape[1]), np.int64)
    for block in questions.blocks():
        rows, pairs = questions.rows(block)
        counts[rows] = np.moveaxis(_counts(counter, questions, block, windows), -1, 0)[pairs]
    return counts


def _counts(counter: Counter, questions: Questions, block: slice, windows: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """`as_of` of the pairs in a block: (windows, K, pairs)."""
    times = questions.times[block]
    places = questions.places(block, times)
    until = [total[places] for total in counter.totals.T]
    counts = np.empty((len(windows), len(until), len(times)), np.int64)
    for count, window in zip(counts, windows, strict=True):
        length = window_length(window)
        places = questions.first(block) if length is None else questions.places(block, times - length)
        for column, total, after in zip(count, counter.totals.T, until, strict=True):
            np.subtract(after, total[places], out=column)
    return counts


def count_name(entity: str, kind: str, window: str) -> str:
    """What a day's files call a count: `item_shows_1h`, `item_click_all`."""
    return f"{entity}_{kind}_{window}"


def names(entity: str, windows: tuple[str, ...], rates: tuple[str, ...]) -> list[str]:
    """Feature names of an entity, in the order of `features`' columns: `item_shows_1h`, `item_click_rate_1h`, …"""
    return [
        f"{entity}_{kind}_{window}" for window in windows for kind in ("shows", *(f"{rate}_rate" for rate in rates))
    ]


def features(
    counter: Counter,
    keys: Integers,
    times: Integers,
    windows: tuple[str, ...],
    priors: list[tuple[float, float]],
) -> npt.NDArray[np.float32]:
    """The features called `names`: log1p of the impressions and, per rate, its smoothed value (Q, columns).

    The counter's first value counts impressions, the others one task each. `priors` holds a task's (a, b): the rate
    over all time is (positives + a) / (shows + b), and a window's rate is shrunk towards that with the same strength b.
    """
    questions = counter.timeline.ask(keys, times)
    found = np.empty((len(keys), len(windows) * (1 + len(priors))), np.float32)
    for block in questions.blocks():
        rows, pairs = questions.rows(block)
        counts = np.moveaxis(_counts(counter, questions, block, (*windows, ALL)), -1, 0)
        found[rows] = encode(counts, windows, priors)[pairs]
    return found


def encode(
    counts: npt.NDArray[np.integer], windows: tuple[str, ...], priors: Sequence[tuple[Number, Number]]
) -> npt.NDArray[np.float32]:
    """The features of counts (Q, windows + 1, 1 + tasks) whose last window is all time: (Q, columns).

    A prior's numbers may be arrays (Q,), where the counts are of several entities.
    """
    numbers = counts.astype(np.float64)
    shows, positives = numbers[..., 0], numbers[..., 1:]
    columns = np.empty((len(counts), len(windows), 1 + len(priors)), np.float32)
    columns[..., 0] = np.log1p(shows[:, :-1])
    for task, (a, b) in enumerate(priors):
        overall = shrink(positives[:, -1, task], shows[:, -1], a, b)
        for place, window in enumerate(windows):
            columns[:, place, 1 + task] = (
                overall if window == ALL else shrink(positives[:, place, task], shows[:, place], overall * b, b)
            )
    return columns.reshape(len(counts), -1)
