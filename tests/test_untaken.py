from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from linear_worlds import asked

from pipeline.recall import untaken
from pipeline.recall.faiss_engine import Flat
from pipeline.recall.index import build

VECTORS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
NUMBERS = np.arange(12) + 5


@given(st.lists(st.lists(st.integers(0, 20), max_size=14), min_size=1, max_size=4), st.integers(1, 15))
def test_agrees_with_loops(histories: list[list[int]], k: int) -> None:
    queries = np.random.default_rng(1).normal(size=(len(histories), 3)).astype(np.float32)
    queries[-1] = 0.0
    found = untaken.search(build(VECTORS, NUMBERS, Flat()), queries, asked(*histories), k)
    for row, history in enumerate(histories):
        scores = dict(zip(NUMBERS.tolist(), (VECTORS @ queries[row]).tolist(), strict=True))
        best = sorted(set(scores) - set(history), key=lambda item: -scores[item])[:k]
        kept = found.items[row] >= 0
        assert found.items[row, kept].tolist() == (best if queries[row].any() else [])
        np.testing.assert_allclose(
            found.scores[row, kept], [scores[item] for item in found.items[row, kept]], atol=1e-5
        )
