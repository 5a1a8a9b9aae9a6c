"""FTRL-Proximal against numbers on paper and the published update in scalars; Wide & Deep, which it trains."""

from __future__ import annotations

import math

import pytest
import torch
from test_rankers import SCHEMA, build, examples, lively, pack
from torch import Tensor, nn
from torch.nn import functional

from models.ftrl import FTRL, LearntByFTRL
from models.objective import objective
from models.rankers.wide_deep import SPREAD, CrossedFields
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce


def step(optimiser: FTRL, w: nn.Parameter, gradient: Tensor) -> None:
    w.grad = gradient
    optimiser.step()


def test_two_steps_on_paper() -> None:
    """α = 1, β = 1, λ₁ = 1, λ₂ = 0.5. First g = 3: σ = 3, z = 3, n = 9, w = −(3 − 1) / (1 + 3 + 0.5) = −4/9. Then
    g = −4: n = 25, σ = 5 − 3 = 2, z = 3 − 4 + 8/9 = −1/9: |z| ≤ 1, so w = 0."""
    w = nn.Parameter(torch.zeros(1))
    optimiser = FTRL([w], alpha=1.0, beta=1.0, l1=1.0, l2=0.5)
    step(optimiser, w, torch.tensor([3.0]))
    torch.testing.assert_close(w.data, torch.tensor([-4 / 9]))
    step(optimiser, w, torch.tensor([-4.0]))
    assert w.item() == 0
    torch.testing.assert_close(optimiser.state[w]["z"], torch.tensor([-1 / 9]))
    torch.testing.assert_close(optimiser.state[w]["n"], torch.tensor([25.0]))


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_against_the_published_update_in_scalars(start: float) -> None:
    """Algorithm 1, one coordinate and one example at a time; gradients are zero half of the time."""
    torch.manual_seed(0)
    alpha, beta, l1, l2 = 0.3, 0.8, 0.5, 0.2
    gradients = (torch.randn(60, 4, 3) * (torch.rand(60, 4, 3) < 0.5)).double()
    w = nn.Parameter(torch.full((4, 3), start, dtype=torch.float32))
    optimiser = FTRL([w], alpha=alpha, beta=beta, l1=l1, l2=l2)
    expected = {(i, j): (0.0, 0.0, start) for i in range(4) for j in range(3)}
    zeros = 0
    for t in range(60):
        step(optimiser, w, gradients[t].float())
        for (i, j), (z, n, weight) in expected.items():
            g = gradients[t, i, j].item()
            if g == 0:
                continue
            sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / alpha
            z, n = z + g - sigma * weight, n + g * g
            shrunk = 0.0 if abs(z) <= l1 else z - math.copysign(l1, z)
            weight = -shrunk / ((beta + math.sqrt(n)) / alpha + l2)
            expected[i, j] = (z, n, weight)
        got = w.detach().flatten().tolist()
        assert got == pytest.approx([weight for _, _, weight in expected.values()], abs=1e-4)
        assert [value == 0 for value in got] == [weight == 0 for _, _, weight in expected.values()]
        zeros += got.count(0)
    assert 0 < zeros < 60 * 12


def test_only_coordinates_with_a_gradient_move() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    step(FTRL([w]), w, torch.tensor([0.0, 1.0, 0.0]))
    assert (w[0], w[2]) == (1, 3)
    assert w[1] != 2


def test_parameters_without_a_gradient_and_parameters_in_half_precision() -> None:
    """The state stays in float32, so that small gradients add up: 1 + 400 · 0.001 would stay 1 in bfloat16."""
    idle, w = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimiser = FTRL([idle, w], l1=1e9)
    step(optimiser, w, torch.ones(1, dtype=torch.bfloat16))
    for _ in range(400):
        step(optimiser, w, torch.full((1,), 0.001, dtype=torch.bfloat16))
    assert torch.equal(idle, torch.ones(2))
    assert {value.dtype for value in optimiser.state[w].values()} == {torch.float32}
    torch.testing.assert_close(optimiser.state[w]["z"], torch.tensor([1.4]), atol=1e-2, rtol=0)


def test_l1_finds_the_few_weights_that_matter() -> None:
    """Logistic regression in 50 features of which 3 say something."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 50, generator=random)
    truth = torch.zeros(50)
    truth[:3] = torch.tensor([2.0, -2.0, 1.0])
    y = torch.bernoulli((x @ truth).sigmoid(), generator=random)
    w = nn.Parameter(torch.zeros(50))
    optimiser = FTRL([w], alpha=0.1, beta=1.0, l1=50.0)
    for rows, labels in zip(x.split(10), y.split(10), strict=True):
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(rows @ w, labels, reduction="sum").backward()
        optimiser.step()
    assert (w[:3].sign() == truth[:3].sign()).all()
    assert (w[3:] == 0).sum() > 40


def test_crossed_fields_have_a_weight_for_each_pair_of_codes() -> None:
    crossed, fields = CrossedFields(SCHEMA, ("age", "author_id"), 1 << 12), pack(examples(50))["fields"]
    buckets = [(row[1] * SPREAD + row[3]) % (1 << 12) for row in fields.tolist()]
    assert crossed.buckets(fields).tolist() == buckets
    pairs = torch.cartesian_prod(torch.arange(71, 75), torch.arange(88, 93))
    every = torch.zeros(20, 5).long()
    every[:, [1, 3]] = pairs
    assert len(crossed.buckets(every).unique()) == 20
    torch.testing.assert_close(crossed(fields), crossed.weights.weight[buckets])


def test_wide_and_deep_are_added_and_the_wide_part_begins_as_nothing() -> None:
    model, batch = build("wide_deep", crosses=(("user_id", "author_id"),)).eval(), pack(examples(20))
    torch.testing.assert_close(model(batch), model.deep(model.inputs(batch)))
    model = lively(model)
    crossed = model.crossed[0](batch["fields"])
    torch.testing.assert_close(model(batch), model.wide(batch) + crossed + model.deep(model.inputs(batch)))


def test_fit_leaves_the_wide_weights_of_unseen_codes_at_zero_and_most_others_too() -> None:
    """Labels follow the author alone; L1 keeps users and ages, which say nothing, mostly out."""
    model, rows = build("wide_deep", crosses=(("age", "author_id"),), buckets=64), examples(512)
    assert isinstance(model, LearntByFTRL)
    batch = pack(rows)
    batch["labels"] = (batch["fields"][:, [3]] < 90).float().expand(-1, 2)
    deep = model.deep[0].weight.detach().clone()
    fit(
        model,
        lambda epoch: [batch],
        lambda model, batch: objective(model, batch, masked_bce),
        lambda model: {"none": 0.0},
        steps=1,
        epochs=1,
        learning_rate=0.01,
        monitor="none",
        log=lambda metrics, epoch: None,
    )
    table = model.wide.weights.table.weight
    rows_of_fields = table[:, :2].split([field.size for field in SCHEMA.fields])
    zero = [(part == 0).float().mean().item() for part in rows_of_fields]
    assert zero[0] > 0.5
    assert zero[3] == 0
    assert not (model.deep[0].weight == deep).all()
    seen = torch.isin(torch.arange(64), model.crossed[0].buckets(batch["fields"]))
    assert not model.crossed[0].weights.weight[~seen].any()
    assert model.crossed[0].weights.weight[seen].any()
