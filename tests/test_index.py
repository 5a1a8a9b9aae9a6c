from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.lake import InputError
from pipeline.recall import index as nearest


def clustered(count: int, seed: int, clusters: int = 40, width: int = 16) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(clusters, width))
    generator = np.random.default_rng(seed)
    points = centres[generator.integers(0, clusters, count)] + 0.4 * generator.normal(size=(count, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_flat_is_brute_force() -> None:
    vectors, queries = clustered(500, 1), clustered(20, 2)
    ids = np.arange(500) * 3 + 7
    found, scores = nearest.search(nearest.build(vectors, ids, "flat"), queries, 10)
    product = queries @ vectors.T
    order = np.argsort(-product, axis=1)[:, :10]
    assert found.tolist() == ids[order].tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(product, order, axis=1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_find_nearly_all(kind: nearest.Kind) -> None:
    vectors, queries = clustered(5_000, 1), clustered(100, 2)
    ids = np.arange(5_000)
    exact, _ = nearest.search(nearest.build(vectors, ids, "flat"), queries, 50)
    found, _ = nearest.search(nearest.build(vectors, ids, kind), queries, 50)
    recall = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.9


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_saved_index_answers_alike_and_has_the_same_bytes(tmp_path: Path, kind: nearest.Kind) -> None:
    vectors, queries = clustered(600, 1), clustered(5, 2)
    for name in ("one", "two"):
        nearest.save(nearest.build(vectors, np.arange(600) + 1, kind), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = nearest.load(tmp_path / "one", 16)
    told = nearest.search(nearest.build(vectors, np.arange(600) + 1, kind), queries, 7)
    for mine, theirs in zip(nearest.search(loaded, queries, 7), told, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_fewer_items_than_asked_for(kind: nearest.Kind) -> None:
    index = nearest.build(clustered(2, 1), np.array([5, 6]), kind)
    ids, _ = nearest.search(index, clustered(1, 2), 4)
    assert sorted(ids[0].tolist()) == [-1, -1, 5, 6]
    ids, _ = nearest.search(nearest.build(np.empty((0, 16)), np.empty(0), "flat"), clustered(1, 2), 2)
    assert ids.tolist() == [[-1, -1]]


def test_bad_input_is_named(tmp_path: Path) -> None:
    vectors = clustered(10, 1)
    index = nearest.build(vectors, np.arange(10), "flat")
    broken = vectors.copy()
    broken[3, 2] = np.nan
    with pytest.raises(InputError, match="vectors: row 3"):
        nearest.build(broken, np.arange(10), "flat")
    with pytest.raises(InputError, match="queries: row 3"):
        nearest.search(index, broken, 2)
    with pytest.raises(InputError, match="expected a matrix"):
        nearest.search(index, vectors[0], 2)
    with pytest.raises(InputError, match="width 8"):
        nearest.search(index, vectors[:, :8], 2)
    nearest.save(index, tmp_path / "index")
    with pytest.raises(InputError, match="width 16, the model's are 8"):
        nearest.load(tmp_path / "index", 8)
    with pytest.raises(InputError, match="not a readable index"):
        nearest.load(tmp_path / "absent", 16)
