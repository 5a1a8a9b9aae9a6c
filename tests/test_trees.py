"""Boosted trees as buffers: against numbers on paper, a walk in plain Python, and LightGBM's own leaves."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rankers import build, examples, lively, pack
from torch import Tensor

from models import RANKERS, Schema
from models.rankers.gbdt_lr import GBDTLR, MOST_CODES, Trees
from models.schema import Field
from pipeline.bench.market import features_of
from pipeline.features.store import FeatureStore, Rows
from pipeline.ranking.batches import Encoder, in_order
from pipeline.ranking.trees import boost, float32_below, grow, write


def blank(columns: int, *, trees: int = 3, leaves: int = 8, depth: int = 4) -> Trees:
    return Trees(torch.zeros(columns), torch.ones(columns), trees, leaves, depth)


def walk(trees: Trees, row: list[float]) -> list[int]:
    """A row's leaf in every tree, until a node leads to itself."""
    leaves = []
    for column, threshold, branches in zip(
        trees.column.tolist(), trees.threshold.tolist(), trees.branches.tolist(), strict=True
    ):
        node, before = 0, -1
        while node != before:
            before, node = node, branches[node][row[column[node]] > threshold[node]]
        leaves.append(node - (trees.leaves - 1))
    return leaves


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Real numbers, whole ones with many zeros, a constant and powers of ten; the label depends on them jointly."""
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 5)).astype(np.float32)
    x[:, 2] = x[:, 2].round()
    x[:, 3] = 7
    x[:, 4] = 10 ** (4 * x[:, 4])
    noise = random.normal(size=3000)
    return x, (x[:, 0] * x[:, 1] + x[:, 2] + (x[:, 4] > 1) + noise > 0).astype(np.float32)


def test_trees_on_paper() -> None:
    """Above 0.5 in column 0 is leaf 2; below, above −1 in column 1 parts leaf 1 from leaf 0. A row at a threshold is
    not above it."""
    trees = blank(2, trees=1, leaves=3, depth=2)
    trees.column[0, :2], trees.threshold[0, :2] = torch.tensor([0, 1]), torch.tensor([0.5, -1.0])
    trees.branches[0, :2] = torch.tensor([[1, 4], [2, 3]])
    x = torch.tensor([[0.6, 9.0], [0.5, -1.0], [0.0, -0.9], [-3.0, -2.0]])
    assert trees(x).tolist() == [[2], [0], [1], [0]]


@pytest.mark.parametrize("leaves", [1, 2, 5, 12, 16])
def test_random_trees_against_a_walk(leaves: int) -> None:
    torch.manual_seed(0)
    trees, x = blank(4, trees=6, leaves=leaves), torch.rand(200, 4)
    got = trees(x)
    assert got.tolist() == [walk(trees, row) for row in x.tolist()]
    assert got.min() == 0
    assert got.max() == leaves - 1


def test_random_trees_split_between_the_bounds_of_each_column() -> None:
    trees = Trees(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 9.0]), 50, 8, 3)
    for column, (low, high) in enumerate([(0, 1), (5, 9)]):
        mine = trees.threshold[trees.column == column]
        assert low <= mine.min() < mine.max() <= high


def test_more_leaves_than_a_depth_has_room_for_are_an_error() -> None:
    with pytest.raises(ValueError, match="depth 3 has at most 8 leaves, not 9"):
        build("gbdt_lr", leaves=9, depth=3)


@pytest.mark.parametrize(("leaves", "depth"), [(2, 1), (8, 3), (12, 6), (31, 20)])
def test_leaves_are_lightgbms(table: tuple[np.ndarray, np.ndarray], leaves: int, depth: int) -> None:
    """Also for rows it never saw, at its thresholds, as near to them as float32 comes, and around zero.

    LightGBM scores what is within 1e-35 of zero as zero; −1e-35 itself is the one number for which that shows.
    """
    x, y = table
    trees = blank(5, trees=20, leaves=leaves, depth=depth)
    booster = boost(x, y, trees, seed=0)
    write(trees, booster)
    thresholds = trees.threshold.flatten().numpy()
    near = np.stack([np.nextafter(thresholds, np.float32(side)) for side in (-np.inf, np.inf)])
    random = np.random.default_rng(1)
    strange = [random.choice(np.concatenate([thresholds, *near, [0, 1e-36, -1e-36, 1e30]]), (4000, 5)), x[:500] * 3]
    rows = np.concatenate([x, *strange]).astype(np.float32)
    rows[rows == np.float32(-1e-35)] = 0
    expected = booster.predict(rows, pred_leaf=True).reshape(len(rows), -1)
    assert np.array_equal(trees(torch.from_numpy(rows)).numpy(), expected)
    assert expected.max() == leaves - 1


def test_a_tree_that_stops_early_keeps_its_leaves_and_one_without_splits_has_a_single_leaf() -> None:
    """Ten rows of a kind are fewer than LightGBM splits off; a label that one split explains needs no second."""
    x = np.repeat(np.float32([[0.0], [1.0]]), 50, axis=0)
    trees = blank(1)
    write(trees, boost(x, x[:, 0], trees, seed=0))
    assert trees(torch.tensor([[0.0], [1.0]]))[:, 0].tolist() == [0, 1]
    write(trees, boost(x[:10], x[45:55, 0], trees, seed=0))
    assert not trees(torch.tensor([[0.0], [1.0]])).any()


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.1, -1 / 3, 1.0000000180025095e-35, 0.5, 16_777_217.0, 0.0])
def test_thresholds_are_rounded_down(value: float) -> None:
    below = float32_below(value)
    assert np.float32(below) == below <= value < float(np.nextafter(np.float32(below), np.float32(np.inf)))


def test_equal_seeds_grow_equal_trees_on_any_number_of_threads(table: tuple[np.ndarray, np.ndarray]) -> None:
    texts = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        texts.append(str(boost(*table, blank(5), seed=0).dump_model()["tree_info"]))
    torch.set_num_threads(before)
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def market() -> tuple[Encoder, Rows]:
    """A small market's training rows."""
    with features_of(users=200, items=100, impressions=4_000, seed=0) as folder:
        store = FeatureStore.open(folder)
        return Encoder(store), store.log("train")


def test_grown_on_a_store_the_leaves_are_lightgbms_for_all_rows(market: tuple[Encoder, Rows]) -> None:
    encoder, rows = market
    torch.manual_seed(0)
    model = GBDTLR(encoder.schema, trees=10)
    before = model.trees.column.clone()
    grow(model, in_order(encoder, rows, size=500), seed=0)
    assert not torch.equal(model.trees.column, before)
    columns = model.columns(encoder(rows))
    booster = boost(columns.numpy(), rows.labels[:, 0].copy(), model.trees, seed=0)
    assert np.array_equal(model.trees(columns).numpy(), booster.predict(columns.numpy(), pred_leaf=True))


def test_grown_on_rows_whose_first_label_is_known(market: tuple[Encoder, Rows]) -> None:
    """Rows of unknown label are left out; where the first label is unknown everywhere, the second is learnt."""
    encoder, rows = market

    def leaves(labels: np.ndarray, chosen: slice = slice(None)) -> Tensor:
        model = GBDTLR(encoder.schema, trees=5)
        grow(model, in_order(encoder, replace(rows, labels=labels).take(chosen), size=500), seed=0)
        return model.trees(model.columns(encoder(rows)))

    half, second = rows.labels.copy(), rows.labels.copy()
    half[1500:, 0] = np.nan
    second[:, 0] = np.nan
    swapped = rows.labels[:, [1, 0]]
    assert torch.equal(leaves(half), leaves(rows.labels, slice(1500)))
    assert torch.equal(leaves(second), leaves(swapped))
    assert not torch.equal(leaves(second), leaves(rows.labels))


def test_columns_leave_out_fields_of_many_codes() -> None:
    fields = (Field("user_id", MOST_CODES + 1, "user"), Field("age", MOST_CODES, "user"))
    model = GBDTLR(Schema(fields, (), (), ("click",), ("home",)))
    batch = {"fields": torch.tensor([[7, 300], [255, 256]]), "numbers": torch.zeros(2, 0), "domain": torch.zeros(2)}
    assert model.columns(batch).tolist() == [[0, 44], [0, 0]]


def test_columns_are_the_domain_the_numbers_and_the_codes() -> None:
    model, rows = build("gbdt_lr"), examples(20)
    codes = [row["fields"] - np.array([0, 71, 75, 88, 93]) for row in rows]
    expected = [[row["domain"], *row["numbers"], *code] for row, code in zip(rows, codes, strict=True)]
    torch.testing.assert_close(model.columns(pack(rows)), torch.tensor(np.array(expected)).float())


def test_logits_are_the_weights_of_the_leaves_and_those_of_lr() -> None:
    model, batch = lively(build("gbdt_lr", trees=7, leaves=5, depth=3)), pack(examples(30))
    linear, columns = model.lr(batch), model.columns(batch)
    expected = [
        logit + sum(model.weights[tree, leaf] for tree, leaf in enumerate(walk(model.trees, row)))
        for logit, row in zip(linear, columns.tolist(), strict=True)
    ]
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_scoring_needs_no_lightgbm(market: tuple[Encoder, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, rows = market
    model = GBDTLR(encoder.schema, trees=5)
    grow(model, in_order(encoder, rows, size=500), seed=0)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    twin = RANKERS["gbdt_lr"](encoder.schema, trees=5)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(encoder(rows)), model(encoder(rows)))
    with pytest.raises(ImportError):
        grow(twin, in_order(encoder, rows, size=500), seed=0)
