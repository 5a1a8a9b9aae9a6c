from __future__ import annotations

import numpy as np
from route_tables import engaged

from pipeline.recall.item_matrix import Engagements
from pipeline.recall.semantic_ids import NO_ID, engagement_vectors, places, residual_codes, semantic_ids


def everyone(vectors: np.ndarray) -> np.ndarray:
    return np.ones(len(vectors), bool)


def test_residual_codes_on_paper() -> None:
    """Two clusters ten apart, and what they leave over, (0, -1) or (0, 1), is the same in both."""
    vectors = np.array([[0, 0], [0, 2], [10, 0], [10, 2]] * 3, np.float32)
    vectors[4:8] += 1e-3
    codes = residual_codes(vectors, everyone(vectors), levels=2, size=2, seed=0)
    first, second = codes[:4].T
    assert first[0] == first[1] != first[2] == first[3]
    assert second[0] == second[2] != second[1] == second[3]
    np.testing.assert_array_equal(codes[:4], codes[8:])


def test_every_code_is_the_nearest_centroid_of_what_is_left_over() -> None:
    """As many centroids as vectors: the first level leaves nothing over, and the second has one code."""
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    codes = residual_codes(vectors, everyone(vectors), levels=2, size=8, seed=0)
    assert sorted(codes[:, 0]) == [0, 1, 2, 3, 4]
    assert codes[:, 1].tolist() == [0] * 5


def test_more_levels_leave_less_over() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    codes = residual_codes(vectors, everyone(vectors), levels=3, size=8, seed=0)
    left, before = vectors.astype(np.float64), np.inf
    for level in range(3):
        prefixes = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)[1].ravel()
        own = np.stack([vectors[prefixes == prefixes[row]].mean(axis=0) for row in range(len(vectors))])
        left = vectors - own
        assert (left**2).sum() < 0.9 * before
        before = (left**2).sum()


def test_items_alike_are_told_apart_and_those_without_a_vector_have_no_id() -> None:
    vectors = np.array([[0, 0], [1, 0], [5, 5], [1, 0], [np.nan, 1], [1, 0]], np.float32)
    ids = semantic_ids(vectors, everyone(vectors), levels=2, size=4, seed=0)
    assert (ids[[0, 4]] == NO_ID).all()
    assert ids[[1, 3, 5], 2].tolist() == [0, 1, 2]
    assert ids[2, 2] == 0
    given = ids[ids[:, 0] != NO_ID]
    assert len(np.unique(given, axis=0)) == 4


def test_a_later_item_changes_nobodys_id() -> None:
    vectors = np.random.default_rng(1).integers(1, 4, size=(40, 2)).astype(np.float32)
    known = np.arange(40) % 3 > 0
    ids = semantic_ids(vectors, known, levels=2, size=3, seed=0)
    other = vectors.copy()
    other[~known] = 2.0
    np.testing.assert_array_equal(semantic_ids(other, known, levels=2, size=3, seed=0)[known], ids[known])


def test_nobody_known_is_nobody_with_an_id() -> None:
    vectors = np.ones((3, 2), np.float32)
    assert (semantic_ids(vectors, np.zeros(3, bool), levels=2, size=3, seed=0) == NO_ID).all()


def test_places_on_paper() -> None:
    codes = np.array([[1, 1], [0, 1], [1, 1], [1, 1]])
    assert places(codes, np.array([False, True, True, True])).tolist() == [2, 0, 0, 1]


def test_engagement_vectors_of_two_crowds_are_at_right_angles() -> None:
    taken = [(user, item) for user in (1, 2, 3) for item in (1, 2, 3)] + [(u, i) for u in (4, 5) for i in (4, 5)]
    vectors = engagement_vectors(Engagements.of(engaged(taken, [1, 2, 3, 4, 5, 6])), 4)
    cosine = vectors @ vectors.T
    np.testing.assert_allclose(cosine[1:4, 1:4], 1.0, atol=1e-4)
    np.testing.assert_allclose(cosine[1:4, 4:6], 0.0, atol=1e-4)
    assert not vectors[[0, 6]].any()
