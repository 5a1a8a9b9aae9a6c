"""What the service remembers of users between requests: what it has shown, and what it ranked high and has not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from rbloom import Bloom

from pipeline.recall.cache import Cache
from pipeline.recall.exposure import Exposure, pair_keys
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import DAY

CAPACITY = 1 << 20
Integers = npt.NDArray[np.int64]


class Shown:
    """A bundle's exposure filter and what was shown since, a Bloom filter a day; a day that is too old is dropped.

    Of users and items who were not shown anything, or to anyone, nothing is asked: `users` (U,) and `items` (I,) count
    how often they were lately.
    """

    def __init__(self, before: Exposure, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> None:
        self._before = before
        self._days = len(before.windows)
        self._users, self._items = users, items
        self._since: dict[int, Bloom] = {}

    def add(self, user: int, item: int, moment: int) -> None:
        """An impression at a time in µs. A day later than all so far lets the oldest one go."""
        day = moment // DAY
        if day not in self._since:
            first = day - self._days + 1
            self._since = {one: bloom for one, bloom in self._since.items() if one >= first}
            self._since[day] = Bloom(max(self._before.capacity, CAPACITY), self._before.error, int)
            old = max(first - self._before.first, 0)
            self._before = replace(self._before, windows=self._before.windows[old:], first=self._before.first + old)
        self._since[day].add(int(pair_keys(np.array([user]), np.array([item]))[0]))
        self._users[user] += 1
        self._items[item] += 1

    def most(self, users: npt.NDArray[np.integer]) -> int:
        """No user of these (N,) was shown more than so many items lately."""
        return int(self._users[users].max(initial=0))

    def contains(self, users: npt.NDArray[np.integer], items: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether each of N pairs was shown: a mask (N,)."""
        found = (self._users[users] > 0) & (self._items[items] > 0)
        some = np.flatnonzero(found)
        users, items = users[some], items[some]
        shown = self._before.contains(users, items) if self._before.windows else np.zeros(len(some), bool)
        keys = pair_keys(users, items).tolist() if self._since else []
        for window in self._since.values():
            shown |= np.fromiter(map(window.__contains__, keys), bool, len(keys))
        found[some] = shown & (users > 0)
        return found  # type: ignore[no-any-return]


class Remembered:
    """R11 as the service feeds it: for whom it has ranked since, that; for the others the bundle's `lists`.

    `since` is what users are to be recommended by domain: the time of the ranking in µs, and its items, best first.
    """

    def __init__(self, lists: Route) -> None:
        self.since: Mapping[int, Mapping[int, tuple[int, npt.NDArray[np.int32]]]] = {}
        self._lists = lists
        self._life = lists.life if isinstance(lists, Cache) else 0

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` best of what is remembered of each user, as `cache.Cache` has it."""
        found = self._lists.recall(requests, k)
        fresh = [self._entries(user) for user in requests.user.tolist()]
        has = np.array([len(entries[0]) > 0 for entries in fresh])
        if not has.any():
            return found
        user = np.repeat(np.arange(len(requests)), [len(entries[0]) for entries in fresh])
        domain, item, moment, rank = (np.concatenate([entries[n] for entries in fresh]) for n in range(4))
        of_row = Requests(
            user=np.arange(len(requests), dtype=np.int32),
            domain=requests.domain,
            time=requests.time,
            items=requests.items,
            times=requests.times,
            offsets=requests.offsets,
        )
        since = Cache(user, domain, item, moment, rank, self._life).recall(of_row, k)
        width = max(since.items.shape[1], found.items.shape[1])
        return Found(
            np.where(has[:, None], _widened(since.items, width, NOTHING), _widened(found.items, width, NOTHING)),
            np.where(has[:, None], _widened(since.scores, width, 0), _widened(found.scores, width, 0)),
        )

    def _entries(self, user: int) -> tuple[Integers, Integers, Integers, Integers]:
        lists = self.since.get(user, {})
        domain = np.repeat(np.array(list(lists), np.int64), [len(items) for _, items in lists.values()])
        item = [items.astype(np.int64) for _, items in lists.values()]
        moment = [np.full(len(items), when, np.int64) for when, items in lists.values()]
        rank = [np.arange(1, len(items) + 1) for _, items in lists.values()]
        nothing = [np.zeros(0, np.int64)]
        return (
            domain,
            np.concatenate([*nothing, *item]),
            np.concatenate([*nothing, *moment]),
            np.concatenate([*nothing, *rank]),
        )


def _widened(values: npt.NDArray[np.generic], width: int, fill: int) -> npt.NDArray[np.generic]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)
