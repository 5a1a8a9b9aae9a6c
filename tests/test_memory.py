from __future__ import annotations

from itertools import chain

import numpy as np

from pipeline.recall import exposure
from pipeline.recall.cache import HOUR, Cache
from pipeline.recall.route import NOTHING, Requests
from pipeline.recall.snapshot import DAY
from pipeline.serving.memory import Remembered, Shown

NOW = 100 * DAY


def requests(*users: int, taken: dict[int, list[int]] | None = None) -> Requests:
    histories = [(taken or {}).get(user, []) for user in users]
    return Requests(
        user=np.array(users, np.int32),
        domain=np.zeros(len(users), np.int16),
        time=np.full(len(users), NOW),
        items=np.array([*chain(*histories)], np.int32),
        times=np.zeros(len([*chain(*histories)]), np.int64),
        offsets=np.cumsum([0, *map(len, histories)]),
    )


def lists() -> Cache:
    """Users 1 and 2 have lists of an hour ago."""
    user, item, rank = np.array([[1, 10, 1], [1, 11, 2], [2, 20, 1]]).T
    return Cache(user, np.zeros(3, np.int64), item, np.full(3, NOW - HOUR), rank, 48 * HOUR)


def listed(found) -> list[list[int]]:
    return [[item for item in row if item != NOTHING] for row in found.items.tolist()]


def test_who_was_ranked_since_has_that_and_the_others_their_lists():
    memory = Remembered(lists())
    assert listed(memory.recall(requests(1, 2, 3), 5)) == [[10, 11], [20], []]
    memory.since = {2: {0: (NOW - 1, np.array([30, 31, 32], np.int32))}}
    together = memory.recall(requests(1, 2, 3), 5)
    assert listed(together) == [[10, 11], [30, 31, 32], []]
    assert together.scores[0].tolist()[:2] == [2.0, 1.5]
    for row, user in enumerate((1, 2, 3)):
        assert listed(memory.recall(requests(user), 5)) == [listed(together)[row]]


def test_what_was_taken_since_is_left_out_and_other_domains_come_later():
    memory = Remembered(lists())
    memory.since = {
        3: {domain: (NOW - 1, np.array([first, first + 1], np.int32)) for domain, first in ((0, 30), (1, 40))}
    }
    assert listed(memory.recall(requests(3, taken={3: [30]}), 5)) == [[31, 40, 41]]
    assert listed(memory.recall(requests(3), 3)) == [[30, 31, 40]]


def filter_of(*pairs: tuple[int, int]) -> Shown:
    """Shown on day 99 of the days 98 to 99."""
    users, items = np.array(pairs).reshape(-1, 2).T
    before = exposure.empty(2, 98, capacity=100, error=1e-6).add(users, items, np.full(len(users), 99 * DAY))
    return Shown(before, np.bincount(users, minlength=9), np.bincount(items, minlength=9))


def test_what_is_shown_since_is_remembered_as_long_as_what_was_before():
    shown = filter_of((1, 5), (2, 6))
    ask = np.array([1, 1, 2, 2, 3, 0]), np.array([5, 6, 5, 6, 5, 5])
    assert shown.contains(*ask).tolist() == [True, False, False, True, False, False]
    assert shown.most(np.array([1, 3])) == 1
    shown.add(3, 5, NOW)
    assert shown.contains(*ask).tolist() == [True, False, False, True, True, False]
    shown.add(3, 7, NOW + DAY)
    assert shown.contains(*ask).tolist() == [False, False, False, False, True, False]
    shown.add(3, 8, NOW + 2 * DAY)
    assert not shown.contains(*ask).any()
    assert shown.contains(np.array([3, 3]), np.array([7, 8])).all()
    assert shown.most(np.array([3])) == 3
