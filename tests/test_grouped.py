"""Layers of groups of rows against the straightforward form: all layers for every row, of which one is picked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import grouped
from models.grouped import grouped_linear, grouping, ungrouped
from models.layers import Bank, OtherColumns, pick

COUNTS = [(0, 0, 0), (1, 0, 1), (7, 1, 12), (0, 0, 30)]


def shuffled(counts: tuple[int, ...]) -> Tensor:
    group = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return group[torch.randperm(len(group), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("counts", COUNTS)
def test_rows_of_a_group_lie_together_and_go_back_where_they_were(counts: tuple[int, ...]) -> None:
    group = shuffled(counts)
    order, count = grouping(group, len(counts))
    assert torch.equal(group[order], group.sort().values)
    assert tuple(count.tolist()) == counts
    rows = torch.randn(len(group), 2)
    assert torch.equal(ungrouped(rows[order], order), rows)


@pytest.mark.parametrize("counts", COUNTS)
def test_own_network_is_the_one_picked_of_all_in_value_and_every_gradient(counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    group = shuffled(counts)
    bank, x = Bank(len(counts), 5, 4, 2, activate_last=True), torch.randn(len(group), 5, requires_grad=True)
    told = torch.randn(len(group), 2)
    of = [x, *bank.parameters()]
    own, picked = bank.own(x, group), pick(bank(x), group)
    torch.testing.assert_close(own, picked)
    found, expected = (torch.autograd.grad((one * told).sum(), of) for one in (own, picked))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_a_grouped_layer_are_those_of_its_differences() -> None:
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(*shape, dtype=torch.double) for shape in ((6, 3), (3, 3, 2), (3, 2)))
    given = [one.requires_grad_() for one in (rows, weight, bias)]
    assert torch.autograd.gradcheck(lambda *one: grouped_linear(*one, torch.tensor([2, 0, 4])), given)


def test_a_grouped_layer_is_an_operator_that_can_be_compiled_and_cast() -> None:
    given = (torch.randn(6, 3), torch.randn(3, 3, 2), torch.randn(3, 2), torch.tensor([2, 0, 4]))
    torch.library.opcheck(grouped_linear, given)
    with torch.autocast("cpu", torch.bfloat16):
        cast = grouped_linear(*given)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), grouped_linear(*given), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("counts", [(7, 1, 12), (0, 30, 3), (4, 8, 0), (0, 0, 3)])
def test_in_bfloat16_sizes_do_not_matter(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are multiplied with rows of their neighbours around them, of which nothing is to be seen."""
    monkeypatch.setattr(grouped, "STEP", 4)
    torch.manual_seed(0)
    shapes = (sum(counts), 5), (3, 5, 2), (3, 2)
    given = [torch.randint(-2, 3, shape).float().requires_grad_() for shape in shapes]
    told = torch.randint(-2, 3, (sum(counts), 2)).float()
    plain = grouped_linear(*given, torch.tensor(counts))
    with torch.autocast("cpu", torch.bfloat16):
        cast = grouped_linear(*given, torch.tensor(counts))
    assert torch.equal(cast.float(), plain)
    found, expected = (torch.autograd.grad((one * told).sum(), given) for one in (cast, plain))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("without", [[], [0, 1], [2, 3], [3, 4]])
def test_all_columns_but_some(without: list[int]) -> None:
    x, kept = torch.randn(2, 5), [i for i in range(5) if i not in without]
    others = OtherColumns(without, 5)
    assert others.width == len(kept)
    assert torch.equal(others(x), x[:, kept])
