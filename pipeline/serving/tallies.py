"""What was counted of every key, to be asked for a few keys and turned into features at once, by a compiled kernel.

The numbers are those of `features.statistics`: a batch sorts all its questions, a request has few and searches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.features import statistics
from pipeline.features.store import Columns
from pipeline.features.timeline import Clock, Integers
from pipeline.lake import mapped, write_json

MOST_COUNTED = 2_000_000
SLOTS = 1 << 10
PARTS = ("keys", "starts", "codes", "totals")


@dataclass(frozen=True)
class Tally:
    """What happened to every key over time, to be asked for few keys: those of `statistics.Counter`, without what
    sorts its events. `totals` (N + 1, K) lie row by row."""

    keys: Integers
    starts: Integers
    codes: Integers
    totals: npt.NDArray[np.int32]
    clock: Clock

    @classmethod
    def of(cls, keys: Integers, times: Integers, values: npt.NDArray[np.integer]) -> Tally:
        counter = statistics.Counter.of(keys, times, values)
        timeline = counter.timeline
        totals = np.ascontiguousarray(counter.totals, np.int32)
        return cls(timeline.keys, timeline.starts, timeline.codes, totals, timeline.clock)

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        """As a kernel reads it; a clock without moments has none of them."""
        clock = self.clock
        moments = np.empty(0, np.int64) if clock.moments is None else clock.moments
        return self.keys, self.starts, self.codes, self.totals, clock.origin, clock.unit, clock.size, moments

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in PARTS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        moments = self.clock.moments
        if moments is not None:
            np.save(folder / "moments.npy", moments)
        told = {"origin": self.clock.origin, "unit": self.clock.unit, "size": self.clock.size}
        write_json(folder / "clock.json", {**told, "moments": moments is not None})

    @classmethod
    def load(cls, folder: Path) -> Tally:
        """Maps the arrays into memory, as plain ones."""
        keys, starts, codes, totals = (mapped(folder / f"{name}.npy") for name in PARTS)
        told = json.loads((folder / "clock.json").read_text())
        moments = mapped(folder / "moments.npy") if told.pop("moments") else None
        return cls(keys, starts, codes, totals, Clock(**told, moments=moments))


class Since:
    """What happened since the bundle, counted by entity: `shows` and the recipe's rates, as `Tally`s.

    They are made anew by `recount`, so that what was added just before may not be counted yet.
    """

    def __init__(self, rates: tuple[str, ...]) -> None:
        self._names = ("user", "item", "domain", "time", "shows", *rates)
        self._events: list[tuple[int, ...]] = []
        self._counted = 0
        self._tallies: dict[str, Tally] = {}
        none = np.empty(0, np.int64)
        self._nothing = Tally.of(none, none, np.empty((0, 1 + len(rates)), np.int64))

    def __len__(self) -> int:
        return len(self._events)

    @property
    def stale(self) -> bool:
        return self._counted < len(self._events)

    def tally(self, entity: str) -> Tally:
        return self._tallies.get(entity, self._nothing)

    def add(self, user: int, item: int, domain: int, time: int, shows: bool, rates: Sequence[bool]) -> None:
        """The first two million events are counted; by then a new bundle is due."""
        if len(self._events) < MOST_COUNTED:
            self._events.append((user, item, domain, time, int(shows), *map(int, rates)))

    def recount(self, keys: Callable[[str, Columns], Integers], entities: tuple[str, ...]) -> None:
        """`keys(entity, events)` gives the events' keys (N,)."""
        self._counted = len(self._events)
        if not self._counted:
            return
        table = np.array(self._events[: self._counted], np.int64)
        events = dict(zip(self._names, table.T, strict=True))
        values = table[:, 4:]
        self._tallies = {entity: Tally.of(keys(entity, events), events["time"], values) for entity in entities}


def features(
    before: Tally,
    since: Tally,
    keys: Integers,
    times: Integers,
    lags: Integers,
    priors: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """`statistics.features` of keys (Q,) at times (Q,), of what both tallies have: (Q, columns).

    A window reaches back for its lag (W,) in µs, a negative one for all time; the last lag is. `priors` (T, 2).
    """
    found = np.empty((len(keys), (len(lags) - 1) * (1 + len(priors))), np.float32)
    _features(keys, times, lags, priors, before.parts, since.parts, found)
    return found


@njit(nogil=True, cache=True)
def _features(keys, times, lags, priors, before, since, found):  # type: ignore[no-untyped-def]
    counts = np.empty((len(lags), 1 + len(priors)), np.int64)
    latest = np.zeros(SLOTS, np.int64)
    for row in range(len(keys)):
        slot = keys[row] & (SLOTS - 1)
        like = latest[slot]
        if like < row and keys[row] == keys[like] and times[row] == times[like]:
            found[row] = found[like]
            continue
        latest[slot] = row
        counts[:] = 0
        _count(keys[row], times[row], lags, before, counts)
        _count(keys[row], times[row], lags, since, counts)
        column = 0
        for window in range(len(lags) - 1):
            found[row, column] = math.log1p(counts[window, 0])
            for task in range(len(priors)):
                a, b = priors[task]
                rate = (counts[-1, 1 + task] + a) / (counts[-1, 0] + b)
                if lags[window] >= 0:
                    rate = (counts[window, 1 + task] + rate * b) / (counts[window, 0] + b)
                found[row, column + 1 + task] = rate
            column += 1 + len(priors)


@njit(nogil=True, cache=True)
def _count(key, time, lags, tally, counts):  # type: ignore[no-untyped-def]
    keys, starts, codes, totals, origin, unit, size, moments = tally
    rank = np.searchsorted(keys, key)
    if rank == len(keys) or keys[rank] != key:
        return
    slot = (2 * rank + 1) * (size + 1)
    first = starts[rank]
    until = _first_from(codes, first, starts[rank + 1], slot + _tick(time, origin, unit, size, moments))
    for lag in range(len(lags)):
        place = first
        if lags[lag] >= 0:
            begin = _tick(time - lags[lag], origin, unit, size, moments)
            place = _first_from(codes, first, until, slot + begin)
        for column in range(totals.shape[1]):
            counts[lag, column] += totals[until, column] - totals[place, column]


@njit(nogil=True, cache=True, inline="always")
def _tick(time, origin, unit, size, moments):  # type: ignore[no-untyped-def]
    """`Clock.before` of one time."""
    if len(moments):
        return np.searchsorted(moments, time)
    passed = min(max(time, origin), origin + (size - 1) * unit + 1) - origin
    return (passed + unit - 1) // unit


@njit(nogil=True, cache=True, inline="always")
def _first_from(codes, low, high, sought):  # type: ignore[no-untyped-def]
    while low < high:
        middle = (low + high) >> 1
        if codes[middle] < sought:
            low = middle + 1
        else:
            high = middle
    return low
