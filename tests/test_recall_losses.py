"""The losses of recall against the full softmax, which all of them agree with where they can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

from pipeline.lake import InputError
from pipeline.recall import losses

BY_ROW = ("pointwise", "bpr", "hinge")


def agree(mine: Tensor, theirs: Tensor, of: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    """In value and gradient."""
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
    pairs = zip(torch.autograd.grad(mine, of), torch.autograd.grad(theirs, of), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def vectors(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return normalize(drawn).requires_grad_()


def test_loss_on_paper() -> None:
    user, item = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_q = torch.tensor([0.5, 0.25]).log()
    loss = losses.listwise(user, item, torch.tensor([1, 2]), log_q, temperature=0.5)
    own, other = np.exp(2.0) / 0.5, np.exp(0.0) / 0.25
    assert float(loss) == pytest.approx(-np.log(own / (own + other)), abs=1e-6)


def test_with_all_items_sampled_it_is_the_full_softmax_in_value_and_gradient() -> None:
    """Three rows with distinct items, and the other five items drawn once each: all eight, each once."""
    users, items = vectors(3, 1), vectors(8, 2)
    own = torch.tensor([5, 0, 3])
    full = cross_entropy(users @ items.T / 0.1, own)
    wanted = torch.autograd.grad(full, (users, items))
    order = torch.tensor([5, 0, 3, 1, 2, 4, 6, 7])
    log_q = torch.full((8,), 1 / 8).log()
    sampled = losses.listwise(users, items[order], order, log_q, temperature=0.1)
    found = torch.autograd.grad(sampled, (users, items))
    torch.testing.assert_close(sampled, full)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_log_q_makes_an_uneven_sample_agree_with_the_full_softmax() -> None:
    """Many draws by a skewed q: near the full softmax with log q, far from it without and with its sign turned."""
    users, items = vectors(1, 1).detach(), vectors(20, 2).detach()
    share = torch.arange(1, 21).double() ** 2
    share /= share.sum()
    drawn = torch.multinomial(share, 50_000, replacement=True, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([4])
    full = float(cross_entropy(users @ items.T / 0.5, own))
    sample = torch.cat([own, drawn])
    expected = torch.cat([torch.ones(1), (share[drawn] * len(drawn)).float()])

    def loss(log_q: torch.Tensor) -> float:
        return float(losses.listwise(users, items[sample], sample, log_q, temperature=0.5))

    assert loss(expected.log()) == pytest.approx(full, rel=0.02)
    assert abs(loss(torch.zeros(len(sample))) - full) > 1
    assert abs(loss(-expected.log()) - full) > 1


def test_copies_of_the_own_item_are_no_negatives() -> None:
    user, item = vectors(2, 1), vectors(3, 2)
    alone = losses.listwise(user[:1], item[[0, 1]], torch.tensor([7, 8]), torch.zeros(2), temperature=0.1)
    copied = losses.listwise(user[:1], item[[0, 1, 0, 0]], torch.tensor([7, 8, 7, 7]), torch.zeros(4), temperature=0.1)
    torch.testing.assert_close(alone, copied)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_listwise_is_the_cross_entropy_of_every_copy_but_those_of_the_own_item(rows: int) -> None:
    """Nine items, so that most are sampled many times, in value and in the gradients of users and items."""
    users, items = vectors(rows, 1), vectors(9, 2)
    drawn = torch.randint(9, (rows + 20,), generator=torch.Generator().manual_seed(3))
    log_q = torch.linspace(-2, 1, 9)[drawn]
    logits = users @ items[drawn].T / 0.1 - log_q
    copies = (drawn[:rows, None] == drawn) & ~torch.eye(rows, len(drawn), dtype=torch.bool)
    straight = cross_entropy(logits.masked_fill(copies, -torch.inf), torch.arange(rows))
    agree(losses.listwise(users, items[drawn], drawn, log_q, temperature=0.1), straight, (users, items), 1e-4)


@pytest.mark.parametrize("rows", [1, 7, 1_100])
def test_the_chunked_full_softmax_is_the_cross_entropy(rows: int) -> None:
    users, items = vectors(rows, 1), vectors(9, 2)
    own = torch.arange(rows) * 5 % 9
    agree(
        losses.full_softmax(users, items, own, temperature=0.1),
        cross_entropy(users @ items.T / 0.1, own),
        (users, items),
    )


def test_the_full_softmax_of_no_rows_and_of_huge_logits() -> None:
    items = vectors(9, 2).detach()
    assert float(losses.full_softmax(torch.zeros(0, 4), items, torch.zeros(0, dtype=torch.long), temperature=1)) == 0
    huge = losses.full_softmax(torch.full((1, 4), 1e4), torch.eye(4), torch.tensor([2]), temperature=1.0)
    assert float(huge) == pytest.approx(np.log(4))


@pytest.mark.parametrize("name", [*losses.LOSSES, "full"])
def test_vectors_in_bfloat16_give_the_loss_in_float32(name: str) -> None:
    users, items, item_id = vectors(3, 1), vectors(9, 2), torch.arange(9)

    def loss(user: Tensor, item: Tensor) -> Tensor:
        if name == "full":
            return losses.full_softmax(user, item, item_id[:3], temperature=0.5)
        return losses.LOSSES[name](user, item, item_id, torch.full((9,), 1 / 9).log(), temperature=0.5)

    with torch.autocast("cpu", torch.bfloat16):
        agree(loss(users.bfloat16(), items.bfloat16()), loss(users, items), (users, items), 0.02)


def test_bpr_is_the_full_softmax_of_a_catalogue_of_two() -> None:
    users, items = vectors(3, 1), vectors(2, 2)
    own = torch.tensor([1, 0, 1])
    sample = torch.cat([own, 1 - own])
    mine = losses.bpr(users, items[sample], sample, torch.zeros(6), temperature=0.1)
    agree(mine, cross_entropy(users @ items.T / 0.1, own), (users, items))


def test_the_hinge_is_the_limit_of_that_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """τ · softmax's cross-entropy at temperature τ → 0 is max(0, other − own), the hinge without its margin."""
    monkeypatch.setattr(losses, "MARGIN", 0.0)
    users, items = vectors(3, 1), vectors(2, 2)
    own = torch.tensor([1, 0, 1])
    sample = torch.cat([own, 1 - own])
    mine = losses.hinge(users, items[sample], sample, torch.zeros(6), temperature=1.0)
    agree(mine, 1e-3 * cross_entropy(users @ items.T / 1e-3, own), (users, items), 1e-3)


def test_pointwise_has_the_gradient_of_the_full_softmax_when_all_items_are_sampled_often() -> None:
    """Each of eight items 20,000 times beside a row whose logits are log-probabilities already, as the loss learns
    them to be. The value differs by what does not depend on the logits' differences."""
    probabilities = torch.tensor([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02])
    logits = probabilities.log().requires_grad_()
    times, own = 20_000, 2
    sample = torch.cat([torch.tensor([own]), torch.arange(8).repeat(times)])
    log_q = torch.full((len(sample),), float(times)).log()
    vector = torch.ones(1, 1)
    loss = losses.pointwise(vector, logits[sample, None], sample, log_q, temperature=1.0)
    (found,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(cross_entropy(logits[None], torch.tensor([own])), logits)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    without = losses.pointwise(vector, logits[sample, None], sample, torch.zeros(len(sample)), temperature=1.0)
    assert (torch.autograd.grad(without, logits)[0] - expected).abs().max() > 100


@pytest.mark.parametrize("name", BY_ROW)
def test_losses_by_row_agree_with_loops(name: str) -> None:
    """Three rows, two drawn items for each, of which one is the row's own."""
    users, items = vectors(3, 1), vectors(9, 2)
    item_id = torch.tensor([4, 5, 6, 7, 5, 8, 4, 3, 2])
    log_q = torch.linspace(-2, 1, 9)
    pair: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "bpr": lambda own, other: softplus(other - own),
        "hinge": lambda own, other: (1 + other - own).clamp(min=0),
    }
    total, count = torch.zeros(()), 0
    for row in range(3):
        own = users[row] @ items[row] / 0.5
        total = total + (softplus(-(own - log_q[row])) if name == "pointwise" else 0)
        for place in (3 + row, 6 + row):
            if name != "pointwise" and item_id[place] == item_id[row]:
                continue
            other = users[row] @ items[place] / 0.5
            count += 1
            total = total + (softplus(other - log_q[place]) if name == "pointwise" else pair[name](own, other))
    assert count == (6 if name == "pointwise" else 4)
    mine = losses.LOSSES[name](users, items, item_id, log_q, temperature=0.5)
    agree(mine, total / (3 if name == "pointwise" else count), (users, items))


@pytest.mark.parametrize("name", ["bpr", "hinge"])
def test_a_row_with_nothing_but_copies_pulls_nothing_down(name: str) -> None:
    users, items = vectors(1, 1), vectors(3, 2)
    loss = losses.LOSSES[name](users, items, torch.tensor([4, 4, 4]), torch.zeros(3), temperature=0.5)
    (gradient,) = torch.autograd.grad(loss, items)
    assert gradient[1:].eq(0).all()


def test_how_many_are_drawn() -> None:
    assert losses.drawn("listwise", 256, None, 20) == (1024, (256, 1024))
    assert losses.drawn("listwise", 256, 100, 20) == (100, (256, 100))
    assert losses.drawn("pointwise", 256, None, 20) == (768, (0, 60))
    assert losses.drawn("bpr", 256, 2, 20) == (512, (0, 40))


def test_an_unknown_loss_is_named() -> None:
    losses.check("two_tower", "full")
    with pytest.raises(
        InputError, match=r"recall\.options\.two_tower\.loss: 'softmax' is unknown; it is one of listwise"
    ):
        losses.check("two_tower", "softmax")
