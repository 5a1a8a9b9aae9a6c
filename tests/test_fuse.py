import numpy as np
import pytest

from pipeline.ranking.fuse import fuse, ndcg, tune, with_recall


def test_fusion_is_a_product_of_powers_with_the_weights_of_the_domain():
    scores = np.array([[0.25, 0.5], [0.25, 0.5]])
    weights = np.array([[1.0, 0.0], [0.5, 2.0]])
    assert fuse(scores, np.array([0, 1]), weights) == pytest.approx([0.25, 0.5 * 0.25])


def test_the_place_in_the_merge_is_fused_like_a_task():
    scores = with_recall(np.array([[0.5], [0.5]]), np.array([1, 4]))
    assert fuse(scores, np.array([0, 0]), np.array([[1.0, 0.5]])) == pytest.approx([0.5, 0.25])


def test_ndcg_by_hand():
    request = np.array([0, 0, 0, 1, 1, 2])
    scores = np.array([3.0, 2.0, 1.0, 1.0, 2.0, 1.0])
    positive = np.array([False, True, True, True, False, False])
    value = ndcg(scores, request, positive, np.array([2, 1, 1]), length=2)
    ideal = 1 + 1 / np.log2(3)
    assert value == pytest.approx([(1 / np.log2(3)) / ideal, 1 / np.log2(3), 0.0])


def test_ndcg_agrees_with_a_loop():
    generator = np.random.default_rng(1)
    request = np.sort(generator.integers(0, 30, 600))
    scores, positive = generator.random(600), generator.random(600) < 0.1
    positives = np.bincount(request[positive], minlength=30) + generator.integers(1, 3, 30)
    expected = []
    for number in range(30):
        order = np.argsort(-scores[request == number])
        gains = positive[request == number][order][:10]
        ideal = sum(1 / np.log2(2 + place) for place in range(min(10, positives[number])))
        expected.append(sum(1 / np.log2(2 + place) for place, hit in enumerate(gains) if hit) / ideal)
    assert ndcg(scores, request, positive, positives, length=10) == pytest.approx(expected)


def test_tuning_finds_the_task_that_matters_in_each_domain():
    """Two domains: positives follow the first task in one and the second task in the other."""
    generator = np.random.default_rng(0)
    requests, candidates = 300, 20
    domain = np.arange(requests) % 2
    request = np.repeat(np.arange(requests), candidates)
    scores = generator.uniform(0.01, 0.99, (requests * candidates, 2))
    deciding = scores[np.arange(len(request)), domain[request]].reshape(requests, candidates)
    positive = (deciding == deciding.max(axis=1, keepdims=True)).ravel()
    positives = np.ones(requests, dtype=int)
    weights = tune(scores, domain, request, positive, positives, domains=3, length=5, trials=40, seed=0)
    assert weights.shape == (3, 2)
    assert weights[0, 0] > 5 * weights[0, 1]
    assert weights[1, 1] > 5 * weights[1, 0]
    best = ndcg(fuse(scores, domain[request], weights), request, positive, positives, length=5)
    assert best.mean() > 0.9


def test_a_domain_with_few_requests_keeps_the_weights_of_all():
    generator = np.random.default_rng(0)
    request = np.repeat(np.arange(40), 10)
    scores, positive = generator.random((400, 2)), generator.random(400) < 0.1
    positives = np.maximum(1, np.bincount(request[positive], minlength=40))
    weights = tune(scores, np.arange(40) % 2, request, positive, positives, domains=2, length=5, trials=5, seed=0)
    assert np.array_equal(weights[0], weights[1])
