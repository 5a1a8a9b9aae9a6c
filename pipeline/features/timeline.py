"""Events of many keys in order of time, and how many of them lie before a moment: one binary search for all.

Statistics, behaviour sequences and match features all ask the same question: which events of this key came strictly
before this moment? Here keys and times become ranks, and a (key, time) pair one int64, so that a million questions
are one call of `np.searchsorted`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """N events by key, then by time, then by their own order: the event at place p is event `order[p]`."""

    order: Integers
    keys: Integers
    starts: Integers
    moments: Integers
    codes: Integers

    @classmethod
    def of(cls, keys: Integers, times: Integers) -> Timeline:
        """The timeline of events with these int64 keys and times, given in any order."""
        distinct, key_ranks = np.unique(keys, return_inverse=True)
        moments, time_ranks = np.unique(times, return_inverse=True)
        in_time = np.argsort(times, kind="stable")
        order = in_time[np.sort(key_ranks[in_time] * np.int64(len(keys)) + np.arange(len(keys))) % max(len(keys), 1)]
        codes = key_ranks * np.int64(len(moments) + 1) + time_ranks
        starts = np.concatenate([[0], np.cumsum(np.bincount(key_ranks, minlength=len(distinct)))])
        return cls(order, distinct.astype(np.int64), starts.astype(np.int64), moments.astype(np.int64), codes[order])

    def ask(self, keys: Integers, times: Integers) -> Questions:
        """Questions about these keys (Q,) as of these times (Q,)."""
        distinct_keys, key_ranks = np.unique(keys, return_inverse=True)
        distinct_times, time_ranks = np.unique(times, return_inverse=True)
        pairs = key_ranks * np.int64(max(len(distinct_times), 1)) + time_ranks
        order = np.argsort(pairs)
        new = np.diff(pairs[order], prepend=-1) > 0
        inverse = np.empty(len(keys), np.int64)
        inverse[order] = np.cumsum(new) - 1
        asked = order[new]
        ranks = np.searchsorted(self.keys, distinct_keys)
        known = ranks < len(self.keys)
        known[known] = self.keys[ranks[known]] == distinct_keys[known]
        return Questions(
            self, asked, inverse, ranks[key_ranks[asked]], known[key_ranks[asked]], distinct_times, time_ranks[asked]
        )


@dataclass(frozen=True)
class Questions:
    """The U distinct (key, time) pairs among Q asked, sorted, which keeps a search inside the processor's cache.

    `asked` (U,): where each pair stood first; `inverse` (Q,): the pair of each question, so that `answers[inverse]`
    are the answers in the order asked. `ranks` and `known` place a pair's key in the timeline, and
    `times[time_ranks]` are the pairs' times.
    """

    timeline: Timeline
    asked: Integers
    inverse: Integers
    ranks: Integers
    known: npt.NDArray[np.bool_]
    times: Integers
    time_ranks: Integers

    def first(self) -> Integers:
        """Place of each pair's first event (U,)."""
        return self.timeline.starts[self.ranks]

    def before(self, lag: int = 0) -> Integers:
        """Place after the last event of each pair's key strictly before its time, less `lag` (U,).

        Its difference to `first` is the number of such events: 0 for a key without events.
        """
        return self._places(np.searchsorted(self.timeline.moments, self.times - lag)[self.time_ranks])

    def before_times(self, times: Integers) -> Integers:
        """The same for other times than those asked about, one a pair (U,)."""
        return self._places(np.searchsorted(self.timeline.moments, times))

    def _places(self, moments: Integers) -> Integers:
        codes = self.ranks * np.int64(len(self.timeline.moments) + 1) + np.where(self.known, moments, 0)
        return np.searchsorted(self.timeline.codes, codes)
