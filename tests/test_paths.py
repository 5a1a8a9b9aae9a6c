from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recall.paths import Trie, grouped, ranges, stacked
from pipeline.recall.route import NOTHING, Found

CODES, DEPTH = 3, 3


def shares_of(seed: int, requests: int) -> dict[tuple[int, ...], np.ndarray]:
    """log p of the next code (R, CODES) after every prefix."""
    random = np.random.default_rng(seed)
    prefixes = [prefix for level in range(DEPTH) for prefix in itertools.product(range(CODES), repeat=level)]
    return {prefix: np.log(random.dirichlet(np.ones(CODES), size=requests)).astype(np.float32) for prefix in prefixes}


def log_shares(table: dict[tuple[int, ...], np.ndarray], prefix: np.ndarray) -> np.ndarray:
    requests, beams, _ = prefix.shape
    out = np.empty((requests, beams, CODES), np.float32)
    for request in range(requests):
        for beam in range(beams):
            out[request, beam] = table[tuple(prefix[request, beam].tolist())][request]
    return out


def test_trie_on_paper() -> None:
    trie = Trie.of(np.array([[0, 1], [0, 2], [2, 0]]))
    assert [starts.tolist() for starts in trie.starts] == [[0], [0, 2], [0, 1, 2]]
    assert [children.tolist() for children in trie.children] == [[0, 2], [0, 2, 3]]


@pytest.mark.parametrize("codes", [[[0, 1], [0, 1]], [[0, 2], [0, 1]], [[1, 0], [0, 5]]])
def test_paths_that_are_equal_or_out_of_order_are_refused(codes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Trie.of(np.array(codes))


@given(st.sets(st.tuples(*[st.integers(0, CODES - 1)] * DEPTH), min_size=1), st.integers(0, 5), st.integers(1, 30))
def test_a_wide_beam_is_an_exhaustive_search(paths: set[tuple[int, ...]], seed: int, width: int) -> None:
    """Wide enough to keep every node of the level before the last, it finds the best paths of all."""
    codes, requests = np.array(sorted(paths)), 2
    table = shares_of(seed, requests)
    wide = max(width, len(paths))
    found = Trie.of(codes).search(lambda prefix: log_shares(table, prefix), requests, wide)
    for request in range(requests):
        slow = [sum(table[path[:level]][request, path[level]] for level in range(DEPTH)) for path in sorted(paths)]
        order = np.argsort(-np.array(slow), kind="stable")
        np.testing.assert_allclose(found.scores[request], np.array(slow)[order], rtol=1e-5)
        assert sorted(found.items[request].tolist()) == list(range(len(paths)))


def test_a_beam_of_one_is_greedy_and_keeps_to_what_exists() -> None:
    """Code 0 has .6 at first, but of what begins with it only 0, 1 exists; 1, 0 is likelier: .4 · .9 > .6 · .1."""
    table = {(): np.log([[0.6, 0.4]]), (0,): np.log([[0.9, 0.1]]), (1,): np.log([[0.9, 0.1]])}

    def shares(prefix: np.ndarray) -> np.ndarray:
        return np.stack([[table[tuple(one.tolist())][0] for one in row] for row in prefix])

    trie = Trie.of(np.array([[0, 1], [1, 0]]))
    assert trie.search(shares, 1, 1).items.tolist() == [[0]]
    wide = trie.search(shares, 1, 2)
    assert wide.items.tolist() == [[1, 0]]
    np.testing.assert_allclose(np.exp(wide.scores), [[0.36, 0.06]], rtol=1e-5)


def test_without_paths_or_requests_nothing_is_found() -> None:
    def never(prefix: np.ndarray) -> np.ndarray:
        raise AssertionError

    assert Trie.of(np.zeros((0, 2), np.int32)).search(never, 3, 5).items.shape == (3, 0)
    assert Trie.of(np.array([[0, 1]])).search(never, 0, 5).items.shape == (0, 0)


def test_grouped_on_paper() -> None:
    paths = np.array([[1, 0], [0, 2], [1, 0], [0, 2]])
    distinct, offsets, members = grouped(paths, np.array([7, 9, 5, 3]))
    assert distinct.tolist() == [[0, 2], [1, 0]]
    assert offsets.tolist() == [0, 2, 4]
    assert members.tolist() == [3, 9, 5, 7]


def test_ranges_on_paper() -> None:
    numbers, owner = ranges(np.array([5, 2, 9]), np.array([7, 2, 10]))
    assert numbers.tolist() == [5, 6, 9]
    assert owner.tolist() == [0, 0, 2]


def test_stacked_fills_up_with_nothing() -> None:
    one = Found(np.array([[4]], np.int32), np.array([[0.5]], np.float32))
    two = Found(np.array([[1, 2]], np.int32), np.array([[0.9, 0.1]], np.float32))
    assert stacked([one, two]).items.tolist() == [[4, NOTHING], [1, 2]]
    assert stacked([]).items.shape == (0, 0)
