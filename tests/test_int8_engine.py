from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.recall import int8_engine


def test_codes_on_paper() -> None:
    codes, scales = int8_engine.quantise(np.array([[1.27, -0.635, 0.004], [0, 0, 0], [0, 254, 0]], np.float32))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [0, 127, 0]]
    np.testing.assert_allclose(scales, [0.01, 0, 2], rtol=1e-6)


def test_scores_are_the_products_of_the_codes() -> None:
    """Whole numbers: alike alone and in company, whatever the order of the sums."""
    generator = np.random.default_rng(0)
    vectors, queries = (generator.normal(size=(count, 24)).astype(np.float32) for count in (3_000, 9))
    engine = int8_engine.build(vectors)
    (codes, scales), (asked, own) = int8_engine.quantise(vectors), int8_engine.quantise(queries)
    exact = (asked.astype(int) @ codes.T.astype(int)).astype(np.float32) * scales * own[:, None]
    np.testing.assert_allclose(exact, queries @ vectors.T, atol=0.5)
    places, scores = engine.search(queries, 20)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :20], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, places, axis=1), scores, rtol=1e-6)
    for row in range(len(queries)):
        alone = engine.search(queries[row : row + 1], 20)
        assert (alone[0][0].tolist(), alone[1][0].tolist()) == (places[row].tolist(), scores[row].tolist())


@pytest.mark.parametrize("size", [1, 7, 8, 64, 100, 103])
@pytest.mark.parametrize("k", [1, 5])
def test_the_largest_are_those_of_a_full_sort(size: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_engine, "BLOCK", 4)
    scores = torch.rand(6, size, generator=torch.Generator().manual_seed(size))
    wanted = scores.sort(dim=1, descending=True)
    places, values = int8_engine.largest(scores, min(k, size))
    assert torch.equal(places, wanted.indices[:, :k])
    assert torch.equal(values, wanted.values[:, :k])
