from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from neural_worlds import planted

from models.deep_retrieval import DeepRetrieval
from models.schema import Field, Schema
from pipeline.features.store import FeatureStore
from pipeline.recall import deep_retrieval
from pipeline.recall.snapshot import take

SCHEMA = Schema(
    fields=(Field("user_id", 3, "user"), Field("item_id", 5, "item")),
    numbers=(),
    sequences=(),
    labels=("click",),
    domains=("home",),
)
NODES, DEPTH = 3, 3


def network(seed: int = 0) -> DeepRetrieval:
    torch.manual_seed(seed)
    model = DeepRetrieval(SCHEMA, items=5, width=4, length=2, depth=DEPTH, nodes=NODES, copies=2)
    for layer in model.layers:
        torch.nn.init.normal_(layer[-1].weight, std=1.0)
    return model


def all_paths(rows: int) -> torch.Tensor:
    paths = torch.tensor(list(itertools.product(range(NODES), repeat=DEPTH)))
    return paths.expand(rows, -1, -1)


def test_the_shares_of_all_paths_add_up_to_one_and_are_products() -> None:
    model, x = network(), torch.randn(2, 4)
    scores = model.log_paths(x, all_paths(2))
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2))
    path = torch.tensor([2, 0, 1])
    slow = sum(model.next_code(x, path[None, None, :level].expand(2, 1, -1))[:, 0, path[level]] for level in range(3))
    torch.testing.assert_close(model.log_paths(x, path.expand(2, 1, 3))[:, 0], slow)


def test_a_beam_as_wide_as_there_are_paths_is_an_exhaustive_search() -> None:
    model, x = network(), torch.randn(3, 4)
    paths, scores = model.likeliest(x, NODES**DEPTH)
    exhaustive, order = model.log_paths(x, all_paths(3)).sort(dim=1, descending=True)
    torch.testing.assert_close(scores, exhaustive)
    torch.testing.assert_close(paths, all_paths(3).gather(1, order[:, :, None].expand(-1, -1, DEPTH)))
    narrow, _ = model.likeliest(x, 1)
    greedy = torch.zeros(3, 1, 0, dtype=torch.long)
    for _ in range(DEPTH):
        greedy = torch.cat([greedy, model.next_code(x, greedy).argmax(dim=2)[:, :, None]], dim=2)
    torch.testing.assert_close(narrow, greedy)


def test_an_items_share_is_that_of_its_paths() -> None:
    model, x = network(), torch.randn(2, 4)
    model.paths[1] = torch.tensor([[0, 1, 2], [2, 2, 2]])
    model.paths[2] = torch.tensor([[1, 1, 1], [-1, -1, -1]])
    found = model.log_items(x, torch.tensor([1, 2]))
    both = model.log_paths(x[:1], model.paths[1:2]).exp().sum()
    one = model.log_paths(x[1:], torch.tensor([[[1, 1, 1]]])).exp().sum()
    torch.testing.assert_close(found.exp(), torch.stack([both, one]))


def test_assignment_on_paper() -> None:
    """Item 1 prefers path 7 and item 2 path 7 too, by less; item 0 has no candidate."""
    item, path = np.array([1, 1, 2, 2]), np.array([7, 9, 7, 9])
    score, count = np.array([8.0, 1.0, 4.0, 3.0]), np.array([0, 10, 10])

    def assigned(penalty: float, copies: int = 1) -> list[list[int]]:
        return deep_retrieval.assign(item, path, score, count, copies=copies, penalty=penalty).tolist()

    assert assigned(0.0) == [[-1], [7], [7]]
    assert 10 * np.log(4 / 3) < 1.0 * (2**4 - 1) / 4
    assert assigned(1.0) == [[-1], [7], [9]]
    assert assigned(0.0, copies=3) == [[-1, -1, -1], [7, 9, -1], [7, 9, -1]]


candidates = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 5)), st.floats(0.01, 10.0), min_size=1, max_size=20
)


@given(candidates, st.sampled_from([0.0, 0.01, 0.3]))
def test_no_single_item_would_rather_lie_elsewhere(scores: dict[tuple[int, int], float], penalty: float) -> None:
    """With one path an item, the slow objective rises by no move of one item, or the rounds were too few."""
    pairs = sorted(scores)
    item, path = (np.array(column) for column in zip(*pairs, strict=True))
    count = np.arange(5) + 1
    found = deep_retrieval.assign(
        item, path, np.array([scores[pair] for pair in pairs]), count, copies=1, penalty=penalty
    )[:, 0]

    def objective(laid: np.ndarray) -> float:
        gained = sum(count[v] * np.log(scores[v, laid[v]]) for v in range(5) if laid[v] >= 0)
        crowds = np.bincount(laid[laid >= 0], minlength=6)
        return float(gained - penalty * (crowds.astype(float) ** 4).sum() / 4)

    assert {v for v in range(5) if found[v] >= 0} == set(item.tolist())
    for v, other in pairs:
        moved = found.copy()
        moved[v] = other
        assert objective(moved) <= objective(found) + 1e-6


def test_items_of_one_crowd_come_to_lie_together(tmp_path: Path) -> None:
    """In the planted world most paths come to hold items of one group; at random hardly one would."""
    features = planted(tmp_path)
    options = {"width": 16, "nodes": 8, "epochs": 6, "batch_size": 128, "negatives": 32, "learning_rate": 0.01}
    deep_retrieval.train(features, tmp_path, positive="click", seed=0, log=lambda *_: None, **options)
    store = FeatureStore.open(features)
    out = tmp_path / "route"
    out.mkdir()
    deep_retrieval.fit(take(store, store.slices["test"], "click"), out, model=tmp_path)
    offsets, items = np.load(out / "offsets.npy"), np.load(out / "items.npy")
    direction = np.nan_to_num(store.items["content"]).argmax(axis=1)[items]
    path = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    of_group = np.zeros((len(offsets) - 1, 4))
    np.add.at(of_group, (path, direction), 1)
    assert of_group.max(axis=1).sum() / len(items) > 0.9
    assert np.diff(offsets).max() < len(items) / 4
