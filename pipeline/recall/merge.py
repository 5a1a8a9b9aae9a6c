"""R20, the snake merge: routes take turns, and the direction is reversed each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.recall.route import NOTHING, Found, packed_order

Integers = npt.NDArray[np.integer]

NO_LIMIT = np.iinfo(np.int32).max
AT_ONCE = 1 << 16


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
    edges = np.searchsorted(request, request[AT_ONCE::AT_ONCE])
    kept, positions = [], []
    for begin, end in zip([0, *edges], [*edges, len(request)], strict=True):
        part = slice(begin, end)
        chosen, position = _snake(request[part], item[part], place[part], rank[part], limits, size)
        kept.append(chosen + begin)
        positions.append(position)
    return np.concatenate(kept), np.concatenate(positions)


def _snake(
    request: Integers, item: Integers, place: Integers, rank: Integers, limits: Integers, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    turn = turns(place, rank, limits)
    by_item = packed_order(request, item, turn)
    owner, given = request[by_item], item[by_item]
    first = np.ones(len(by_item), bool)
    first[1:] = (owner[1:] != owner[:-1]) | (given[1:] != given[:-1])
    taken = by_item[first]
    taken = taken[packed_order(request[taken], turn[taken])]
    position = places(request[taken])
    listed = position <= size
    return taken[listed], position[listed]


def places(group: Integers) -> npt.NDArray[np.int64]:
    """The place (1 = first) of each element (N,) within its run of equal ones."""
    number = np.arange(len(group))
    begins = np.diff(group, prepend=-1) != 0
    return number - np.maximum.accumulate(number * begins) + 1


def turns(place: Integers, rank: Integers, limits: Integers) -> npt.NDArray[np.int64]:
    """When each of N candidates is offered: the number of its turn within its request, all turns counted."""
    done = rank.astype(np.int64) - 1
    spare = done >= limits[place]
    forwards = place.astype(np.int64)
    turn = np.where(done & 1, len(limits) - 1 - forwards, forwards)
    turn += (done + spare * (done.max(initial=0) + 1)) * len(limits)
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
