"""Optimisers that touch only the rows of a batch against dense ones over the whole table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.rowwise import LazyAdamW, RowAdagrad, RowWise, distinct, summed_by_row
from pipeline.ranking.compiled_adamw import CompiledAdamW, of_tables

ROWS, WIDTH = 9, 3
LR, DECAY = 0.05, 0.8
LAZY = [LazyAdamW, CompiledAdamW]


def table() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(ROWS, WIDTH)


def lookups(steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """For each step some codes, often none at all, and what each embedding is multiplied with in the loss. Row 8 is
    never looked up, and row 7 in the first step alone."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for step in range(steps):
        codes = torch.randint(7, (int(torch.randint(4, (), generator=random)),), generator=random)
        codes = torch.cat([codes, codes[:1], torch.full((1,), 7)]) if step == 0 else torch.cat([codes, codes[:1]])
        made.append((codes, torch.randn(len(codes), WIDTH, generator=random)))
    return made


def rates(steps: int) -> list[float]:
    """A warm-up and a decay, as in training."""
    return [LR * min(1, (step + 1) / 5) * (1 - step / steps) for step in range(steps)]


def train_lazily(made: RowWise, told: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What each step read, and the table in the end."""
    (embedding,) = made.tables
    read = []
    for (codes, weights), rate in zip(told, rates(len(told)), strict=True):
        made.param_groups[0]["lr"] = rate
        vectors = embedding(codes)
        read.append(vectors.detach().clone())
        embedding.zero_grad(set_to_none=True)
        (vectors * weights).sum().backward()
        made.coalesce()
        made.step()
    made.release()
    return [*read, embedding.weight.detach().clone()]


def train_densely(told: list[tuple[Tensor, Tensor]], step) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """The same by `step(weight, gradient, number, rate)` over the whole table."""
    weight = table().weight.detach()
    read = []
    for number, ((codes, weights), rate) in enumerate(zip(told, rates(len(told)), strict=True), start=1):
        read.append(weight[codes].clone())
        gradient = torch.zeros_like(weight)
        for code, one in zip(codes.tolist(), weights, strict=True):
            gradient[code] += one
        step(weight, gradient, number, rate)
    return [*read, weight]


@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("seed", range(3))
def test_lazy_adamw_reads_and_ends_with_what_dense_adamw_does(
    seed: int, decay: float, kind: Callable[..., LazyAdamW]
) -> None:
    """Torch's own, over 400 steps, so that some gaps are longer than the window."""
    told, parameter = lookups(400, seed), nn.Parameter(table().weight.detach().clone())
    dense = torch.optim.AdamW([parameter], lr=LR, weight_decay=decay)

    def step(weight: Tensor, gradient: Tensor, number: int, rate: float) -> None:
        parameter.grad = gradient
        dense.param_groups[0]["lr"] = rate
        dense.step()
        weight.copy_(parameter.detach())

    lazily = train_lazily(kind([table()], lr=LR, weight_decay=decay), told)
    for one, other in zip(lazily, train_densely(told, step), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_row_adagrad_against_the_formula_over_the_whole_table(decay: float) -> None:
    squares = torch.zeros(ROWS)

    def step(weight: Tensor, gradient: Tensor, number: int, rate: float) -> None:
        squares.add_(gradient.square().mean(dim=1))
        weight.mul_(1 - rate * decay).sub_(rate * gradient / (squares.sqrt() + 1e-8)[:, None])

    told = lookups(100, seed=0)
    lazily = train_lazily(RowAdagrad([table()], lr=LR, weight_decay=decay), told)
    for one, other in zip(lazily, train_densely(told, step), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_adagrad_on_paper() -> None:
    """A row looked up twice, with gradients (1, 2) and (2, 2): the sum (3, 4) has mean square 12.5, and a rate of 1
    takes (3, 4) / √12.5 off; then (3, 4) again, by √25."""
    embedding = nn.Embedding.from_pretrained(torch.zeros(2, 2), freeze=False)
    optimiser = RowAdagrad([embedding], lr=1.0)
    first = [-3 / math.sqrt(12.5), -4 / math.sqrt(12.5)]
    for expected in (first, [first[0] - 0.6, first[1] - 0.8]):
        embedding.zero_grad()
        (embedding(torch.tensor([1, 1])) * torch.tensor([[1.0, 2.0], [2.0, 2.0]])).sum().backward()
        optimiser.coalesce()
        optimiser.step()
        assert embedding.weight[1].tolist() == pytest.approx(expected)
        assert not embedding.weight[0].any()


@pytest.mark.parametrize("kind", LAZY)
def test_a_table_looked_up_twice_in_a_step_gets_both_gradients(kind: Callable[..., LazyAdamW]) -> None:
    ends = []
    for split in (False, True):
        embedding, codes = table(), torch.tensor([1, 2, 2, 5])
        optimiser = kind([embedding], lr=LR, weight_decay=DECAY)
        for _ in range(3):
            embedding.zero_grad()
            parts = codes.split(2) if split else [codes]
            sum(embedding(part).square().sum() for part in parts).backward()  # type: ignore[union-attr]
            (sums,) = optimiser.coalesce()
            assert len(sums) == 3
            optimiser.step()
        optimiser.flush()
        ends.append(embedding.weight.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("kind", [RowAdagrad, *LAZY])
def test_what_coalesce_returns_is_the_gradient_itself(kind: Callable[..., RowWise]) -> None:
    """So that it can be clipped: to zero, and the row stays where it was."""
    embedding = table()
    optimiser = kind([embedding], lr=LR)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([3])).sum().backward()
    (sums,) = optimiser.coalesce()
    sums.mul_(0)
    optimiser.step()
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("kind", LAZY)
def test_scoring_does_not_go_through_it_and_release_gives_the_table_back(kind: Callable[..., LazyAdamW]) -> None:
    embedding = table()
    optimiser = kind([embedding], lr=LR, weight_decay=DECAY)
    embedding(torch.tensor([3])).sum().backward()
    optimiser.coalesce()
    optimiser.step()
    before = embedding.weight.detach().clone()
    embedding.eval()(torch.tensor([0, 1, 2]))
    assert torch.equal(embedding.weight, before)
    optimiser.release()
    torch.testing.assert_close(embedding.weight[0], (1 - LR * DECAY) * before[0])
    embedding.train()
    embedding.zero_grad()
    embedding(torch.tensor([3])).sum().backward()
    assert not embedding.weight.grad.is_sparse  # type: ignore[union-attr]


@settings(deadline=None)
@given(st.lists(st.integers(0, 69_999), max_size=40), st.integers(1, 4))
def test_sums_of_rows(codes: list[int], width: int) -> None:
    values = torch.arange(float(len(codes) * width)).view(-1, width)
    index = torch.tensor(codes, dtype=torch.long)
    gradient = torch.sparse_coo_tensor(index[None], values, (70_000, width), check_invariants=False)
    got = summed_by_row(gradient)
    embedding = nn.Embedding(70_000, width)
    compiled = CompiledAdamW([embedding], lr=LR)
    for _ in range(2):
        embedding.weight.grad = gradient
        (summed,) = compiled.coalesce()
        assert embedding.weight.grad._indices()[0].tolist() == list(dict.fromkeys(codes))
        assert torch.equal(embedding.weight.grad.to_dense(), got.to_dense())
        assert len(summed) == len(set(codes))
    expected: dict[int, Tensor] = {}
    for code, value in zip(codes, values, strict=True):
        expected[code] = expected.get(code, torch.zeros(width)) + value
    assert got._indices()[0].tolist() == sorted(expected) == distinct(index, 70_000).tolist()
    assert torch.equal(got._values(), torch.stack([expected[code] for code in sorted(expected)]) if codes else values)


def test_tables_elsewhere_or_of_other_numbers_keep_the_way_of_tensors() -> None:
    plain, double = table(), table().double()
    assert type(of_tables([plain], lr=LR, weight_decay=0.0)) is CompiledAdamW
    assert type(of_tables([double], lr=LR, weight_decay=0.0)) is LazyAdamW
