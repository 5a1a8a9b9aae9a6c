"""The towers that read a history alone: what they may see, and what each is on paper."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from models.sequential import HistoryTower, MeanPooled, MultiInterest, SelfAttentive

ITEMS = 30
KINDS = {"mean": MeanPooled, "interests": MultiInterest, "attention": SelfAttentive}
every = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


def build(kind: type[HistoryTower], **settings: int) -> HistoryTower:
    """A tower whose parameters are large enough for everything to have an effect."""
    torch.manual_seed(0)
    model = kind(ITEMS, width=8, dropout=0.0, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        for table in (module for module in model.modules() if isinstance(module, torch.nn.Embedding)):
            if table.padding_idx is not None:
                table.weight[0] = 0
    return model


def histories(rows: int, length: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    item = torch.randint(1, ITEMS, (rows, length), generator=random)
    return item, torch.randint(5_000, (rows, length + 1), generator=random).cumsum(dim=1)


@every
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_shapes(kind: type[HistoryTower], rows: int) -> None:
    model = build(kind)
    vectors = model(*histories(rows))
    assert vectors.shape == (rows, 6, 4 if kind is MultiInterest else 1, 8)
    assert model.item_vectors().shape == (ITEMS, 8)
    assert model(*histories(rows, 0)).shape == (rows, 0, *vectors.shape[2:])


@every
def test_a_vector_knows_nothing_of_later_events(kind: type[HistoryTower]) -> None:
    model, (item, time) = build(kind), histories(4)
    whole = model(item, time)
    for length in range(1, 7):
        torch.testing.assert_close(model(item[:, :length], time[:, : length + 1]), whole[:, :length])
    other = item.clone()
    other[:, 3] = other[:, 3] % (ITEMS - 1) + 1
    changed = model(other, time)
    assert torch.equal(changed[:, :3], whole[:, :3])
    assert not torch.isclose(changed[:, 3:], whole[:, 3:]).all(dim=3).any()


@every
def test_a_row_is_the_same_alone_and_in_company(kind: type[HistoryTower]) -> None:
    model, (item, time) = build(kind), histories(5)
    torch.testing.assert_close(model(item[2:3], time[2:3]), model(item, time)[2:3])


@every
def test_scoring_twice_leaves_the_state_untouched(kind: type[HistoryTower]) -> None:
    model = build(kind).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(*histories(3)), model(*histories(3)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every
def test_every_parameter_learns_and_the_padding_does_not(kind: type[HistoryTower]) -> None:
    model = build(kind)
    item, time = histories(40)
    (model(item, time) @ model.item_vectors()[1:].T).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert not model.embed.weight.grad[0].any()
    assert model.embed.weight.grad[1:].any(dim=1).all()


def test_the_mean_is_that_of_the_events_so_far() -> None:
    model, (item, time) = build(MeanPooled), histories(3)
    for place in range(6):
        expected = model.net(model.embed(item[:, : place + 1]).mean(dim=1))
        torch.testing.assert_close(model(item, time)[:, place, 0], expected)


def test_interests_agree_with_loops() -> None:
    model, (item, time) = build(MultiInterest, interests=2), histories(3)
    found = model(item, time)
    for row in range(3):
        for place in range(6):
            events = model.embed(item[row, : place + 1])
            for interest in range(2):
                back = torch.arange(place, -1, -1)
                score = model.score(events)[:, interest] - torch.log1p(model.decay[interest].exp()) * back
                expected = (score.softmax(dim=0)[:, None] * events).sum(dim=0)
                torch.testing.assert_close(found[row, place, interest], expected)


def test_attention_agrees_with_loops() -> None:
    """One block of one head: every event asks the events up to it, by content, distance and time since."""
    model, (item, time) = build(SelfAttentive, layers=1, heads=1, length=4), histories(2)
    block = model.blocks[0]
    for row in range(2):
        x = model.embed(item[row])
        q, k, v = block.qkv(block.before(x)).chunk(3, dim=1)
        for place in range(6):
            score = []
            for other in range(place + 1):
                minutes = int(time[row, place + 1] - time[row, other])
                gap = min((1 + minutes).bit_length() - 1, 19)
                near = block.place.weight[min(place - other, 3), 0] + block.gap.weight[gap, 0]
                score.append(q[place] @ k[other] / 8**0.5 + near)
            h = x[place] + block.out(torch.stack(score).softmax(dim=0) @ v[: place + 1])
            expected = model.norm(h + block.net(block.between(h)))
            torch.testing.assert_close(model(item, time)[row, place, 0], expected)


def test_only_attention_knows_when_it_is_asked() -> None:
    item, time = histories(3)
    later = time.clone()
    later[:, -1] += 100_000
    for kind in KINDS.values():
        model = build(kind)
        assert torch.equal(model(item, later), model(item, time)) == (kind is not SelfAttentive)
        assert torch.equal(model(item, later)[:, :-1], model(item, time)[:, :-1])


@every
def test_a_misspelt_hyper_parameter_is_an_error(kind: type[HistoryTower]) -> None:
    with pytest.raises(TypeError, match="widht"):
        kind(ITEMS, widht=8)
    with pytest.raises(ValueError, match="width 9 is no multiple of 2 heads"):
        SelfAttentive(ITEMS, width=9, heads=2)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """torch.compile cannot look through the shape checks of the other tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@every
@pytest.mark.usefixtures("unchecked_shapes")
def test_it_compiles_without_a_graph_break(kind: type[HistoryTower]) -> None:
    torch.compiler.reset()
    model = build(kind).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*histories(3)), model(*histories(3)))
