"""Events of many keys in order of time, and how many of them lie before a moment: one search in sorted order for all.

Statistics, behaviour sequences and match features all ask the same question: which events of this key came strictly
before this moment? Here a key's rank and a time become one int64, the code, by which events and questions are sorted.
A search then walks through both from front to back, as many at a time as fit the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
BLOCK = 1 << 13
CODE_BITS = 63


@dataclass(frozen=True)
class Clock:
    """Times as ticks, small enough to stand beside a key in one int64.

    Ticks are whole `unit`s of microseconds since `origin`, the first event; where even the greatest exact unit leaves
    too many of them, they are ranks among the distinct `moments`. `size` is the last event's tick + 1.
    """

    origin: int
    unit: int
    size: int
    moments: Integers | None = None

    @classmethod
    def of(cls, times: Integers, keys: int) -> Clock:
        """A clock for events at these times (N,), less than 2^63 µs apart, of so many keys."""
        if len(times) == 0:
            return cls(0, 1, 0)
        origin, last = int(times.min()), int(times.max())
        span, room = last - origin, (1 << CODE_BITS) // (2 * keys + 2) - 2
        if span < room:
            return cls(origin, 1, span + 1)
        unit = max(int(np.gcd.reduce(times - origin)), 1)
        if span // unit < room:
            return cls(origin, unit, span // unit + 1)
        moments = np.unique(times)
        return cls(origin, unit, len(moments), moments)

    def before(self, times: Integers) -> Integers:
        """The number t of each time such that the events before it are those with a tick below t: 0 … size."""
        if self.moments is not None:
            return np.searchsorted(self.moments, times)
        end = self.origin + (self.size - 1) * self.unit + 1
        ticks: Integers = np.clip(times, self.origin, end) - self.origin
        if self.unit > 1:
            ticks += self.unit - 1
            ticks //= self.unit
        return ticks


@dataclass(frozen=True)
class Timeline:
    """N events by key, then by time, then by their own order: the event at place p is event `order[p]`.

    `keys` (G,): the distinct keys, sorted; `starts` (G + 1,): the place of each one's first event. `codes` (N,) ascend:
    slot · (clock.size + 1) + tick, where the slot of the key at rank r is 2r + 1. The slot 2r is for questions about
    keys between those at r - 1 and r, of which there are no events.
    """

    order: Integers
    keys: Integers
    starts: Integers
    clock: Clock
    codes: Integers

    @classmethod
    def of(cls, keys: Integers, times: Integers) -> Timeline:
        """The timeline of events with these int64 keys and times, given in any order."""
        ordered, order = by_key_and_time(keys, times)
        starts = np.append(np.flatnonzero(_changes(ordered)), len(keys))
        clock = Clock.of(times, len(starts) - 1)
        slots = 2 * np.arange(len(starts) - 1) + 1
        codes = np.repeat(slots * (clock.size + 1), np.diff(starts))
        codes += clock.before(times[order])
        return cls(order, ordered[starts[:-1]], starts, clock, codes)

    def ask(self, keys: Integers, times: Integers) -> Questions:
        """Questions about these keys (Q,) as of these times (Q,)."""
        ordered, order = by_key_and_time(keys, times)
        moments = times[order]
        begins = _changes(ordered)
        new = begins | _changes(moments)
        pairs = None
        if not new.all():
            pairs = np.cumsum(new, dtype=np.int64) - 1
            ordered, moments, begins = ordered[new], moments[new], begins[new]
        distinct = ordered[begins]
        ranks = np.searchsorted(self.keys, distinct)
        known = ranks < len(self.keys)
        known[known] = self.keys[ranks[known]] == distinct[known]
        sizes = np.diff(np.flatnonzero(begins), append=len(begins))
        return Questions(self, order, pairs, np.repeat(2 * ranks + known, sizes), moments)


@dataclass(frozen=True)
class Questions:
    """The U distinct (key, time) pairs among Q asked, sorted, which keeps a search inside the processor's cache.

    `order` (Q,) sorts the questions by pair; `pairs` (Q,) are the pairs of the questions so sorted, or None where no
    two are the same. `slots` (U,) place a pair's key in the timeline; `times` (U,) are the pairs' times.
    """

    timeline: Timeline
    order: Integers
    pairs: Integers | None
    slots: Integers
    times: Integers

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def asked(self) -> Integers:
        """Where each pair stood first among the questions (U,)."""
        return self.order if self.pairs is None else self.order[_changes(self.pairs)]

    @cached_property
    def inverse(self) -> Integers:
        """The pair of each question (Q,), so that `answers[inverse]` are the answers in the order asked."""
        inverse = np.empty(len(self.order), np.int64)
        inverse[self.order] = np.arange(len(self.order)) if self.pairs is None else self.pairs
        return inverse

    def blocks(self) -> list[slice]:
        """The pairs in parts that stay in the processor's cache while they are worked on."""
        return [slice(begin, min(begin + BLOCK, len(self))) for begin in range(0, len(self), BLOCK)]

    def rows(self, block: slice) -> tuple[Integers, Integers | slice]:
        """The questions of a block of pairs, and the place in the block of each one's pair."""
        if self.pairs is None:
            return self.order[block], slice(None)
        begin, end = np.searchsorted(self.pairs, [block.start, block.stop])
        return self.order[begin:end], self.pairs[begin:end] - block.start

    def first(self, block: slice = slice(None)) -> Integers:
        """Place of the first event of each pair's key (U,)."""
        places: Integers = self.timeline.starts[self.slots[block] >> 1]
        return places

    def before(self, lag: int = 0) -> Integers:
        """Place after the last event of each pair's key strictly before its time, less `lag` (U,).

        Its difference to `first` is the number of such events: 0 for a key without events.
        """
        return self.before_times(self.times - lag)

    def before_times(self, times: Integers) -> Integers:
        """The same for other times than those asked about, one a pair (U,)."""
        places = np.empty(len(self), np.int64)
        for block in self.blocks():
            places[block] = self.places(block, times[block])
        return places

    def places(self, block: slice, times: Integers) -> Integers:
        """`before_times` of one block."""
        clock, codes = self.timeline.clock, self.timeline.codes
        sought = self.slots[block] * np.int64(clock.size + 1)
        sought += clock.before(times)
        lowest, highest = np.searchsorted(codes, [sought.min(initial=0), sought.max(initial=0)])
        found = np.searchsorted(codes[lowest:highest], sought)
        found += lowest
        return found


def by_key_and_time(keys: Integers, times: Integers) -> tuple[Integers, Integers]:
    """The keys (N,) sorted, and the order (N,) that sorts them, equal ones by time and then by their place."""
    if (times[1:] >= times[:-1]).all():
        return stable_sort(keys)
    _, in_time = stable_sort(times)
    ordered, order = stable_sort(keys[in_time])
    return ordered, in_time[order]


def stable_sort(values: Integers) -> tuple[Integers, Integers]:
    """The values (N,) sorted, and the order (N,) that sorts them, which leaves equal ones in place.

    numpy sorts plain integers several times faster than it finds an order, so that a value, less the least one, and
    its place are packed into one integer. Where both do not fit, the values' lower bits are sorted by before the upper.
    """
    count = len(values)
    if count == 0:
        return values, np.empty(0, np.int64)
    least = values.min()
    offsets = (values - least).view(np.uint64)
    place_bits = (count - 1).bit_length()
    value_bits = 64 - place_bits
    if int(values.max()) - int(least) < 1 << value_bits:
        packed = _packed_sort(offsets, place_bits)
        return (packed >> np.uint64(place_bits)).view(np.int64) + least, _places(packed, place_bits)
    lower = _places(_packed_sort(offsets & np.uint64((1 << value_bits) - 1), place_bits), place_bits)
    order = lower[_places(_packed_sort(offsets[lower] >> np.uint64(value_bits), place_bits), place_bits)]
    return values[order], order


def _packed_sort(values: npt.NDArray[np.uint64], place_bits: int) -> npt.NDArray[np.uint64]:
    packed = values << np.uint64(place_bits)
    packed |= np.arange(len(values), dtype=np.uint64)
    packed.sort()
    return packed


def _places(packed: npt.NDArray[np.uint64], place_bits: int) -> Integers:
    return (packed & np.uint64((1 << place_bits) - 1)).view(np.int64)


def _changes(values: Integers) -> npt.NDArray[np.bool_]:
    """Where a value differs from the one before it; the first does."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new
