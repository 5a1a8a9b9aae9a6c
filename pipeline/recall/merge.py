"""R20, the snake merge: routes take turns, and the direction is reversed each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from pipeline.recall.neighbours import empty_table, slot_of
from pipeline.recall.route import NOTHING, Found

Integers = npt.NDArray[np.integer]

NO_LIMIT = np.iinfo(np.int32).max


def snake_merge(
    candidates: pl.DataFrame, order: Sequence[str], *, size: int, quota: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Merge the routes of each request into one list of at most `size` items, as `snake` does.

    `candidates` has request, item, route, rank and score, sorted by request; `order` names the routes, highest priority
    first, and `quota` the quotas of some. Returns request, item, position (1 = first), route (the giver), rank and
    score, sorted by request and position. Routes outside `order` are left out.
    """
    named = candidates.with_columns(place=pl.col("route").cast(pl.Enum(list(order)), strict=False).to_physical())
    known = named.filter(pl.col("place").is_not_null())
    request, item, place, rank = (known[name].to_numpy() for name in ("request", "item", "place", "rank"))
    limits = limits_of(order, quota or {})
    kept, position = snake(request, item, place, rank, limits=limits, size=size)
    merged = known[kept].with_columns(position=pl.Series(position, dtype=pl.Int32))
    return merged.select("request", "item", "position", "route", "rank", "score")


def snake(
    request: Integers, item: Integers, place: Integers, rank: Integers, *, limits: Integers, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of N candidates the lists of at most `size` items hold, and their positions in them (1 = first).

    Candidates (N,) are sorted by request. One is an `item` that the route at `place` in the order of priority gave a
    `request` at a `rank` (1 = best, no gaps within a route). In round r every route offers its item of rank r: in
    order when r is odd, from its end when r is even. A route that offers an item already taken passes: its next item
    comes with its next turn. A route offers only `limits[place]` items until the others have no more, and then goes
    on. So the turns are known from (place, rank) alone, and a request is merged alike alone and among a million.

    Returns indices of candidates, sorted by request and position.
    """
    begins = np.flatnonzero(np.diff(request.astype(np.int64), prepend=-1, append=-1))
    kept, position = np.empty((2, len(request)), np.int64)
    count = _snake(begins, item, place, rank, limits, int(rank.max(initial=0)), size, kept, position)
    return kept[:count], position[:count]


def places(group: Integers) -> npt.NDArray[np.int64]:
    """The place (1 = first) of each element (N,) within its run of equal ones."""
    number = np.arange(len(group))
    begins = np.diff(group, prepend=-1) != 0
    return number - np.maximum.accumulate(number * begins) + 1


def turns(place: Integers, rank: Integers, limits: Integers) -> npt.NDArray[np.int64]:
    """When each of N candidates is offered: the number of its turn within its request, all turns counted."""
    turn = np.empty(len(place), np.int64)
    _turns(place, rank, limits, int(rank.max(initial=0)), turn)
    return turn


def limits_of(order: Sequence[str], quota: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """Each route's quota in the order of priority; one without has no limit."""
    return np.array([quota.get(route, NO_LIMIT) for route in order], np.int32)


def packed(found: Sequence[Found]) -> tuple[Integers, Integers, Integers, Integers]:
    """Request, item, place and rank of all that several routes, in order of priority, found for the same requests."""
    request, column, place = [], [], []
    for number, one in enumerate(found):
        row, rank = np.nonzero(one.items != NOTHING)
        request.append(row)
        column.append(rank)
        place.append(np.full(len(row), number))
    item = [one.items[row, rank] for one, row, rank in zip(found, request, column, strict=True)]
    columns = [np.concatenate(parts) for parts in (request, item, place, column)]
    if columns[0].max(initial=0):
        order = np.argsort(columns[0], kind="stable")
        columns = [column[order] for column in columns]
    return columns[0], columns[1], columns[2], columns[3] + 1


@njit(nogil=True, cache=True, inline="always")
def _turn(place, rank, limits, deepest):  # type: ignore[no-untyped-def]
    done = np.int64(rank) - 1
    route = np.int64(place)
    if done & 1:
        route = len(limits) - 1 - route
    if done >= limits[place]:
        done += np.int64(deepest)
    return done * len(limits) + route


@njit(nogil=True, cache=True)
def _turns(place, rank, limits, deepest, turn):  # type: ignore[no-untyped-def]
    for number in range(len(turn)):
        turn[number] = _turn(place[number], rank[number], limits, deepest)


@njit(nogil=True, cache=True)
def _snake(begins, item, place, rank, limits, deepest, size, kept, position):  # type: ignore[no-untyped-def]
    """Lay a request's candidates out by turn, and take of each item the first; how many were kept."""
    offered = np.full(2 * np.int64(deepest) * len(limits), NOTHING, np.int32)
    count = 0
    for request in range(len(begins) - 1):
        begin, end = begins[request], begins[request + 1]
        last = 0
        for candidate in range(begin, end):
            turn = _turn(place[candidate], rank[candidate], limits, deepest)
            offered[turn] = candidate - begin
            last = max(last, turn + 1)
        listed, bits = empty_table(min(size, end - begin))
        first = count
        for turn in range(last):
            if offered[turn] != NOTHING and count - first < size:
                candidate = begin + offered[turn]
                slot = slot_of(listed, bits, item[candidate])
                if listed[slot] == NOTHING:
                    listed[slot] = item[candidate]
                    kept[count], position[count] = candidate, count - first + 1
                    count += 1
            offered[turn] = NOTHING
    return count
