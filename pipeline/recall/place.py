"""R8, place: what is wanted near the user's place, from his own cell outwards.

A place is a geohash; one that is not, such as a city's name, is a cell without neighbours. Ring r holds the cells that
are r columns or rows away. An item of ring r scores 2^−r (1 + d) / 2, d being its demand as a share of the highest:
what is nearer comes first, whatever the demand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from pipeline.features import geohash
from pipeline.lake import InputError
from pipeline.recall import hops
from pipeline.recall.attributes import demand, items_with, scaled, strongest, user_texts, users_with
from pipeline.recall.hops import load
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]


def fit(snapshot: Snapshot, folder: Path, *, precision: int = 5, rings: int = 2, most: int = 100) -> None:
    """Write the place of every user, the cells around it, and each cell's `most` wanted items.

    Cells are geohashes of `precision` characters (5: 4.9 km high); places that are told more exactly lie in them.
    """
    places, having = items_with(snapshot, "place")
    homes = user_texts(snapshot, "place")["value"].unique().sort()
    cells, of_place = _cells(places, precision)
    own, of_home = _cells(homes, precision)
    wanted = demand(snapshot)
    near = np.where(wanted > 0, (1 + wanted / max(wanted.max(initial=0.0), np.finfo(np.float32).tiny)) / 2, 0.0)
    hops.save(
        folder,
        of_user=sp.csr_array(users_with(snapshot, "place", homes) @ of_home),
        of_item=sp.csr_array((1, len(own)), dtype=np.float32),
        between=[around(own, cells, precision=precision, rings=rings)],
        to_item=strongest(scaled(sp.csr_array(of_place.T @ having), columns=near.astype(np.float32)), most),
        width=(2 * rings + 1) ** 2,
    )


def _cells(places: pl.Series, precision: int) -> tuple[list[str], sp.csr_array]:
    """The names of the cells of places (P,), and the matrix (P, cells) of which lies where."""
    column, _ = geohash.decode(places.to_list(), precision)
    exact = pl.Series(column >= 0, dtype=pl.Boolean)
    names = pl.select(pl.when(exact).then(places.str.head(precision)).otherwise(places)).to_series()
    cells = names.unique().sort()
    number = names.replace_strict(cells, pl.int_range(len(cells), eager=True), return_dtype=pl.Int64).to_numpy()
    shape = (len(places), len(cells))
    return cells.to_list(), sp.csr_array((np.ones(len(places), np.float32), (np.arange(len(places)), number)), shape)


def around(own: list[str], cells: list[str], *, precision: int, rings: int) -> sp.csr_array:
    """The matrix (len(own), len(cells)) with 2^−r where a cell lies in ring r ≤ `rings` around one's own."""
    wide = geohash.columns(precision)
    if not 0 <= 2 * rings < wide:
        raise InputError(
            f"recall.options.place: rings = {rings} at precision {precision}; rings are 0 to {wide // 2 - 1}"
        )
    places = zip(*(line.tolist() for line in geohash.decode(cells, precision)), strict=True)
    at = {
        where if where[0] >= 0 else name: place for place, (name, where) in enumerate(zip(cells, places, strict=True))
    }
    steps = [(right, up) for right in range(-rings, rings + 1) for up in range(-rings, rings + 1)]
    entries = []
    homes = zip(*(line.tolist() for line in geohash.decode(own, precision)), strict=True)
    for row, (name, (x, y)) in enumerate(zip(own, homes, strict=True)):
        near = (
            [(((x + right) % wide, y + up), max(abs(right), abs(up))) for right, up in steps] if x >= 0 else [(name, 0)]
        )
        entries += [(row, at[cell], 0.5**ring) for cell, ring in near if cell in at]
    rows, columns, weights = np.array(entries, float).reshape(-1, 3).T
    where = rows.astype(np.int64), columns.astype(np.int64)
    return sp.csr_array((weights.astype(np.float32), where), shape=(len(own), len(cells)))
