from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lake import InputError
from pipeline.recall import index as nearest
from pipeline.recall.faiss_engine import HNSW, IVF, PQ, Flat
from pipeline.recall.index import KINDS

EXACT = ("flat", "kd_tree")


def clustered(count: int, seed: int, clusters: int = 40, width: int = 16) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(clusters, width))
    generator = np.random.default_rng(seed)
    points = centres[generator.integers(0, clusters, count)] + 0.4 * generator.normal(size=(count, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    product = queries @ vectors.T
    order = np.argsort(-product, axis=1)[:, :k]
    return order, np.take_along_axis(product, order, axis=1)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("stretch", [0.0, 2.0])
def test_exact_kinds_are_brute_force(kind: str, stretch: float) -> None:
    """By inner product, which for vectors of different lengths is no order of distances or angles."""
    vectors, queries = clustered(1_200, 1), clustered(20, 2)
    vectors *= (1 + stretch * np.random.default_rng(3).random((len(vectors), 1))).astype(np.float32)
    ids = np.arange(len(vectors)) * 3 + 7
    found, scores = nearest.build(vectors, ids, KINDS[kind]()).search(queries, 10)
    order, products = brute_force(vectors, queries, 10)
    assert found.tolist() == ids[order].tolist()
    np.testing.assert_allclose(scores, products, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_find_nearly_all(kind: str) -> None:
    vectors, queries = clustered(5_000, 1), clustered(100, 2)
    exact, _ = brute_force(vectors, queries, 50)
    found, scores = nearest.build(vectors, np.arange(5_000), KINDS[kind]()).search(queries, 50)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
    assert recall >= 0.95
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(scores, (queries[:, None] * vectors[found]).sum(axis=2), atol=0.02)


@pytest.mark.parametrize("width", [1, 7, 33])
def test_codes_of_any_number_of_dimensions(width: int) -> None:
    vectors, queries = clustered(2_000, 1, width=width), clustered(50, 2, width=width)
    found, scores = nearest.build(vectors, np.arange(2_000), PQ(cells=5)).search(queries, 20)
    products = brute_force(vectors, queries, 20)[1]
    assert np.mean(scores >= products[:, -1:] - 1e-6) >= 0.95
    np.testing.assert_allclose(scores, (queries[:, None] * vectors[found]).sum(axis=2), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_alike_and_has_the_same_bytes(tmp_path: Path, kind: str) -> None:
    vectors, queries = clustered(1_100, 1), clustered(5, 2)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        nearest.build(vectors, np.arange(1_100) + 1, KINDS[kind](), model="m").save(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    loaded = nearest.load(tmp_path / "one", 16, "m")
    told = nearest.build(vectors, np.arange(1_100) + 1, KINDS[kind]()).search(queries, 7)
    for mine, theirs in zip(loaded.search(queries, 7), told, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_items_come_and_go(tmp_path: Path, kind: str) -> None:
    """From a loaded, mapped index whose files stay as they are: the nearest are removed, one comes back elsewhere."""
    vectors, query = clustered(1_500, 1), clustered(1, 2)
    nearest.build(vectors, np.arange(1_500), KINDS[kind]()).save(tmp_path)
    index = nearest.load(tmp_path, 16)
    best = index.search(query, 30)[0][0]
    assert index.remove(np.append(best[:20], 9_999)) == 20
    assert index.remove(best[:20]) == 0
    assert len(index) == 1_480
    left = index.search(query, 10)[0][0]
    assert left[:5].tolist() == best[20:25].tolist()
    index.add(np.concatenate([query, -query]), np.array([best[0], best[29]]))
    assert len(index) == 1_481
    found, scores = index.search(query, 30)
    assert found[0, 0] == best[0]
    assert best[29] not in found[0]
    np.testing.assert_allclose(scores[0, 0], 1.0, atol=0.02)
    assert len(nearest.load(tmp_path, 16)) == 1_500
    (tmp_path / "again").mkdir()
    index.save(tmp_path / "again")
    assert nearest.load(tmp_path / "again", 16).search(query, 30)[0].tolist() == found.tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60), st.integers(1, 12))
def test_coming_and_going_agrees_with_a_dictionary(steps: list[tuple[bool, int]], k: int) -> None:
    generator = np.random.default_rng(0)
    index, slow = nearest.build(np.empty((0, 3)), np.empty(0), Flat()), {}
    for comes, number in steps:
        if comes:
            slow[number] = generator.normal(size=3).astype(np.float32)
            index.add(slow[number][None], np.array([number]))
        else:
            assert index.remove(np.array([number])) == (slow.pop(number, None) is not None)
    query = np.array([[1.0, 2.0, 3.0]])
    wanted = sorted(slow, key=lambda number: -float(query[0] @ slow[number]))[:k]
    found = index.search(query, k)[0][0]
    assert found.tolist() == wanted + [-1] * (k - len(wanted))
    assert len(index) == len(slow)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_items_than_asked_for(kind: str) -> None:
    index = nearest.build(clustered(2, 1), np.array([5, 6]), KINDS[kind]())
    ids, _ = index.search(clustered(1, 2), 4)
    assert sorted(ids[0].tolist()) == [-1, -1, 5, 6]
    index = nearest.build(np.empty((0, 16)), np.empty(0), KINDS[kind]())
    assert index.search(clustered(1, 2), 2)[0].tolist() == [[-1, -1]]
    index = nearest.build(clustered(1_000, 1), np.arange(1_000), KINDS[kind]())
    index.remove(np.arange(2, 1_000))
    assert set(index.search(clustered(1, 2), 4)[0][0, 2:].tolist()) == {-1}


def test_vectors_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = clustered(10, 1)
    vectors[3, 2], vectors[4, 0], vectors[5, 1] = np.nan, np.inf, -np.inf
    with caplog.at_level(logging.WARNING):
        index = nearest.build(vectors, np.arange(10), Flat())
    assert "3 of 10 vectors hold NaN or infinity" in caplog.text
    index.save(tmp_path)
    assert json.loads((tmp_path / nearest.HEADER).read_text())["left_out"] == 3
    queries = clustered(3, 2)
    queries[1, 0] = np.nan
    ids, scores = nearest.load(tmp_path, 16).search(queries, 10)
    assert sorted(ids[0].tolist()) == [-1, -1, -1, 0, 1, 2, 6, 7, 8, 9]
    assert ids[1].tolist() == [-1] * 10
    assert np.isfinite(scores).all()
    assert len(nearest.build(np.full((4, 2), np.nan), np.arange(4), Flat())) == 0


def test_bad_input_is_named(tmp_path: Path) -> None:
    vectors = clustered(10, 1)
    index = nearest.build(vectors, np.arange(10), Flat(), model="m")
    with pytest.raises(InputError, match="expected a matrix"):
        index.search(vectors[0], 2)
    with pytest.raises(InputError, match="width 8"):
        index.search(vectors[:, :8], 2)
    with pytest.raises(InputError, match="vectors of width 8 do not fit"):
        index.add(vectors[:, :8], np.arange(10))
    for ids in (np.arange(9), np.zeros(10), np.arange(10) - 1):
        with pytest.raises(InputError, match="10 vectors need as many different ids"):
            nearest.build(vectors, ids, Flat())
    index.save(tmp_path)
    with pytest.raises(InputError, match="width 16, the model's are 8"):
        nearest.load(tmp_path, 8, "m")
    with pytest.raises(InputError, match="the vectors of model m, not of n; build it again"):
        nearest.load(tmp_path, 16, "n")
    with pytest.raises(InputError, match="not a readable index"):
        nearest.load(tmp_path / "absent", 16)
    header = json.loads((tmp_path / nearest.HEADER).read_text())
    (tmp_path / nearest.HEADER).write_text(json.dumps({**header, "format": 0}))
    with pytest.raises(InputError, match=r"format 0 by inner product, this code reads 1.*build it again"):
        nearest.load(tmp_path, 16, "m")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_named(tmp_path: Path, kind: str) -> None:
    nearest.build(clustered(1_100, 1), np.arange(1_100), KINDS[kind]()).save(tmp_path)
    (data,) = (path for path in tmp_path.iterdir() if path.name in ("index.faiss", "vectors.npy", "codes.npy"))
    data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(InputError, match="not a readable index"):
        nearest.load(tmp_path, 16)


def test_what_a_recipe_leaves_open_follows_from_the_number_of_vectors() -> None:
    vectors, ids = clustered(4_000, 1), np.arange(4_000)
    assert nearest.build(vectors, ids, IVF()).engine.recipe == IVF(cells=102, probed=12)
    assert nearest.build(vectors, ids, PQ(cells=50)).engine.recipe == PQ(cells=50, probed=8, refined=4)
    assert nearest.build(vectors[:999], ids[:999], HNSW()).engine.recipe == Flat()
