from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.deep_retrieval import DeepRetrieval
from models.generative import SemanticDecoder
from models.policy import Policy
from models.schema import Field, Schema
from models.state import State

SCHEMA = Schema(
    fields=(Field("user_id", 3, "user"), Field("item_id", 5, "item"), Field("category", 4, "item")),
    numbers=(),
    sequences=(),
    labels=("click",),
    domains=("home", "live"),
)
LENGTH, CONTENT = 3, 2


def rows(count: int) -> dict[str, Tensor]:
    """The first row has no events."""
    generator = torch.Generator().manual_seed(count)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    there = torch.arange(LENGTH) < torch.arange(count)[:, None] % (LENGTH + 1)
    codes = torch.stack([whole(3, 8, count, LENGTH), whole(8, 12, count, LENGTH)], dim=2)
    return {
        "user": whole(0, 3, count, 1),
        "events": codes,
        "content": torch.randn(count, LENGTH, CONTENT, generator=generator),
        "there": there,
        "domain": whole(0, 3, count),
    }


def learnt_paths(batch: dict[str, Tensor]) -> Callable[[nn.Module], Tensor]:
    item = torch.arange(len(batch["domain"])) % 5
    codes, content = torch.tensor([[3, 8]]), torch.ones(1, CONTENT)

    def score(model: nn.Module) -> Tensor:
        assert isinstance(model, DeepRetrieval)
        x = model.state(batch)
        return model.log_items(x, item) + (model.user_vectors(x) @ model.item_vectors(codes, content).T)[:, 0]

    return score


def chosen(batch: dict[str, Tensor]) -> Callable[[nn.Module], Tensor]:
    codes, content = torch.tensor([[3, 8]]), torch.ones(1, CONTENT)

    def score(model: nn.Module) -> Tensor:
        assert isinstance(model, Policy)
        wants, logs = model.users(batch)
        both = wants @ model.item_vectors(codes, content).T + logs @ model.logged_item_vectors(codes, content).T
        return both[:, 0]

    return score


def spoken(batch: dict[str, Tensor]) -> Callable[[nn.Module], Tensor]:
    read = {"events": batch["events"] - torch.tensor([3, 8]), "there": batch["there"], "domain": batch["domain"]}

    def score(model: nn.Module) -> Tensor:
        assert isinstance(model, SemanticDecoder)
        return model.log_items(*model.history(**read), batch["events"][:, 0] - torch.tensor([3, 8]))

    return score


MODELS = {
    "deep_retrieval": (
        lambda: DeepRetrieval(SCHEMA, items=5, width=4, length=LENGTH, content=CONTENT, depth=3, nodes=3),
        learnt_paths,
    ),
    "policy": (lambda: Policy(SCHEMA, width=4, length=LENGTH, content=CONTENT), chosen),
    "generative": (lambda: SemanticDecoder((5, 4), domains=2, width=4, length=LENGTH, heads=2), spoken),
}


def test_the_state_on_paper() -> None:
    """Two events with vectors (1, 0) and (0, 1), the newer thrice as heavy: their means are (½, ½) and (¾, ¼)."""
    state = State(SCHEMA, width=2, length=2, content=2, hidden=(8,))
    assert state.items.content is not None
    state.net = nn.Sequential(nn.Identity())
    with torch.no_grad():
        state.items.embed.table.weight.zero_()
        state.domain.weight.copy_(torch.tensor([[9.0, 9.0], [7.0, 7.0], [5.0, 5.0]]))
        state.items.content.weight.copy_(torch.eye(2))
        state.recency.copy_(torch.tensor([3.0, 1.0]).log())
    batch = {
        "user": torch.tensor([[0], [0]]),
        "events": torch.full((2, 2, 2), 3),
        "content": torch.eye(2).expand(2, 2, 2),
        "there": torch.tensor([[True, True], [False, False]]),
        "domain": torch.tensor([1, 0]),
    }
    expected = torch.tensor([[0, 0, 7, 7, 0.5, 0.5, 0.75, 0.25], [0, 0, 9, 9, 0, 0, 0, 0]])
    torch.testing.assert_close(state(batch), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_number_of_rows(name: str, count: int) -> None:
    make, score = MODELS[name]
    assert score(rows(count))(make()).shape == (count,)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    make, score = MODELS[name]
    torch.manual_seed(0)
    model = make()
    score(rows(7))(model).square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_row_scores_alike_alone_and_in_company_and_leaves_no_trace(name: str) -> None:
    make, score = MODELS[name]
    model = make().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = rows(7)
    together = score(batch)(model)
    reversed_ = {key: value.flip(0) for key, value in batch.items()}
    if name != "deep_retrieval":
        torch.testing.assert_close(score(reversed_)(model), together.flip(0))
    first = {key: value[:1] for key, value in batch.items()}
    torch.testing.assert_close(score(first)(model), together[:1])
    torch.testing.assert_close(score(batch)(model), together)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_a_reloaded_twin_scores_alike(name: str) -> None:
    make, score = MODELS[name]
    model, twin = make().eval(), make().eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(score(rows(7))(twin), score(rows(7))(model))
