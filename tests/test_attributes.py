from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from route_tables import NOW, SHOWN, described

from pipeline.recall import attributes
from pipeline.recall.snapshot import DAY

ITEMS = {"author_id": [7, 7, None, 8], "category": ["a", "a", "b", "b"]}


def test_demand_on_paper(tmp_path: Path) -> None:
    """Item 1 was shown twenty times and engaged with ten times, a week ago; item 3 was shown twenty times in vain."""
    rows = [(1, 1, 0, NOW - 7 * DAY, place < 10) for place in range(20)] + [(1, 3, 0, NOW - DAY, False)] * 20
    taken = replace(described(tmp_path, {"name": ["x"]}, ITEMS), interactions=pl.DataFrame(rows, SHOWN, orient="row"))
    wanted = attributes.demand(replace(taken, items=taken.items.filter(pl.col("item") < 4)))
    overall = 10 / 40
    of_a, of_b = (10 + 20 * overall) / 40, 20 * overall / 40
    of_7 = (10 + 20 * of_a) / 40
    expected = [(10 + 20 * of_7) / 40 * math.log(math.e + 5), of_7, (20 * of_b) / 40]
    assert wanted.tolist() == [0, *(pytest.approx(one) for one in expected), 0]


def test_nothing_shown_yet(tmp_path: Path) -> None:
    wanted = attributes.demand(described(tmp_path, {"name": ["x"]}, {"name": ["i", "j"]}))
    assert wanted[0] == 0
    assert (wanted[1:] > 0).all()


def test_freshness_halves_and_unknown_ages_have_none(tmp_path: Path) -> None:
    taken = described(tmp_path, {"name": ["x"]}, {"name": ["i", "j", "k"]}, days=[0, 2, 4])
    items = taken.items.with_columns(published=taken.items["published"].set(taken.items["item"] == 3, None))
    assert attributes.freshness(replace(taken, items=items), 2.0).tolist() == [0, 1, 0.5, 0]


def test_users_values_whatever_their_type(tmp_path: Path) -> None:
    taken = described(tmp_path, {"follows": [[7, 8, 7], [], None, [9]]}, ITEMS)
    values, having = attributes.items_with(taken, "author_id")
    assert values.to_list() == ["7", "8"]
    assert having.toarray().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
    follows = attributes.users_with(taken, "follows", values)
    assert follows.toarray().tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]
    assert attributes.users_with(taken, "age", values).nnz == 0


def test_the_strongest_of_each_row() -> None:
    matrix = sp.csr_array(np.array([[0.5, 0.9, 0.5, 0.5], [0, 0, 0, 0], [0, 0.1, 0, -1]], np.float32))
    kept = attributes.strongest(matrix, 3)
    assert kept.indptr.tolist() == [0, 3, 3, 4]
    assert kept.indices.tolist() == [1, 0, 2, 1]
    scaled = attributes.scaled(kept, rows=np.array([2, 1, 10], np.float32), columns=np.array([1, 1, 0, 1], np.float32))
    np.testing.assert_allclose(scaled.toarray(), [[1, 1.8, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
