"""Routes from a user to items by what they have in common: each hop is a table of weights, from a user and from what
he took to values (tags, authors, cells), from values to further ones, and at last to items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipeline.features.store import FeatureStore
from pipeline.lake import write_json
from pipeline.recall import neighbours
from pipeline.recall.neighbours import RECENT, Table, latest
from pipeline.recall.route import NOTHING, Found, Requests, Route

SETTINGS = "hops.json"


@dataclass(frozen=True)
class Hops:
    """`first` has the values of user u in row u and those of item i in row `users` + i; `between` leads from values to
    further values, `last` to items. After each hop a request keeps its `width` strongest values."""

    users: int
    width: int
    first: Table
    between: tuple[Table, ...]
    last: Table

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items with the highest sums, over all ways there, of the products of the weights, those already taken
        left out.

        An event of the last 50 begins with 1/√b, b being how far it lies back (1 = the newest); the user himself counts
        as an event older than these.
        """
        of_event, item, back = latest(requests, len(self.first) - self.users)
        everyone = np.arange(len(requests))
        last = np.searchsorted(of_event, everyone, side="right") + everyone
        event = np.ones(len(of_event) + len(requests), bool)
        event[last] = False
        row, place, lies = np.empty((3, len(event)), np.int64)
        row[event], place[event], lies[event] = of_event, item + self.users, back
        row[last], place[last] = everyone, np.where(requests.user < self.users, requests.user, 0)
        lies[last] = np.minimum(np.diff(requests.offsets), RECENT) + 1
        weight = lies**-0.5
        nothing_taken = replace(
            requests, items=requests.items[:0], times=requests.times[:0], offsets=np.zeros_like(requests.offsets)
        )
        for table in (self.first, *self.between):
            found = table.follow(nothing_taken, row, place, weight, self.width)
            row, rank = np.nonzero(found.items != NOTHING)
            place, weight = found.items[row, rank].astype(np.int64), found.scores[row, rank].astype(np.float64)
        return self.last.follow(requests, row, place, weight, k)


def save(
    folder: Path,
    *,
    of_user: sp.csr_array,
    of_item: sp.csr_array,
    to_item: sp.csr_array,
    between: Sequence[sp.csr_array] = (),
    width: int = 32,
) -> None:
    """Write the tables of a route: (U, V), (I, V), any (V, V′) and (V′, I)."""
    tables = {"first": sp.vstack([of_user, of_item], format="csr"), "last": to_item}
    for name, table in {**tables, **{f"between_{place}": one for place, one in enumerate(between)}}.items():
        (folder / name).mkdir()
        neighbours.save(table, folder / name)
    write_json(folder / SETTINGS, {"users": of_user.shape[0], "width": width, "between": len(between)})


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    told = json.loads((folder / SETTINGS).read_text())
    between = tuple(neighbours.load(folder / f"between_{place}") for place in range(told["between"]))
    first, last = (neighbours.load(folder / name) for name in ("first", "last"))
    return Hops(told["users"], told["width"], first, between, last)
