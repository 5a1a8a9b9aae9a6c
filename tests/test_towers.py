"""The two-tower and the coarse ranker: what each side may see, and that the score is a dot product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.coarse import Coarse
from models.schema import Field, Number, Schema, Sequence
from models.two_tower import TwoTower

SCHEMA = Schema(
    fields=(
        Field("user_id", 5, "user"),
        Field("item_id", 6, "item"),
        Field("author_id", 3, "item"),
        Field("hour", 2, "context"),
        Field("user_id*author_id", 4, "cross"),
    ),
    numbers=(Number("age", "user"), Number("hour", "context"), Number("clicks", "item"), Number("affinity", "cross")),
    sequences=(Sequence("clicked", ("item_id", "author_id"), 5, 4),),
    labels=("click",),
    domains=("home", "search", "video"),
)
both = pytest.mark.parametrize("kind", [TwoTower, Coarse])


def batch(rows: int = 30) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    row = torch.arange(rows).repeat_interleave(torch.randint(5, (rows,), generator=random))

    def codes(names: tuple[str, ...], count: int) -> Tensor:
        columns = [SCHEMA.position(name) for name in names]
        each = [torch.randint(SCHEMA.fields[i].size, (count,), generator=random) + SCHEMA.offsets[i] for i in columns]
        return torch.stack(each, dim=1)

    return {
        "fields": codes(tuple(field.name for field in SCHEMA.fields), rows),
        "numbers": torch.randn(rows, 4, generator=random),
        "domain": torch.arange(rows) % 3,
        "content": torch.randn(rows, 7, generator=random),
        "clicked.fields": codes(("item_id", "author_id"), len(row)),
        "clicked.gap": torch.randint(4, (len(row),), generator=random),
        "clicked.row": row,
    }


def build(kind: type[nn.Module]) -> nn.Module:
    """A model whose parameters are large enough for everything to have an effect."""
    torch.manual_seed(0)
    model = kind(SCHEMA, width=8, content=7)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def reads(vectors: Tensor, number: Tensor) -> list[int]:
    """Columns of the numbers that the vectors depend on."""
    (gradient,) = torch.autograd.grad(vectors.square().sum() + vectors.sum(), number, allow_unused=True)
    return [] if gradient is None else gradient.any(dim=0).nonzero().flatten().tolist()


@both
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_shapes(kind: type[nn.Module], rows: int) -> None:
    model, some = build(kind), batch(rows)
    width = 8 if kind is TwoTower else 9
    assert model.user(some).shape == model.item(some).shape == (rows, width)
    assert model(some).shape == (rows,)


@both
def test_the_score_is_the_dot_product_of_the_two_sides(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    torch.testing.assert_close(model(some), (model.user(some) @ model.item(some).T).diagonal())


@both
def test_an_item_vector_depends_on_nothing_but_the_item(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    bare = {"fields": some["fields"].clone(), "numbers": some["numbers"].clone(), "content": some["content"]}
    bare["fields"][:, [0, 3, 4]] = torch.tensor([0, *SCHEMA.offsets[3:]])
    bare["numbers"][:, [0, 1, 3]] = 0
    assert torch.equal(model.item(some), model.item(bare))


@both
def test_a_user_vector_does_not_depend_on_the_item(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    bare = {**some, "fields": some["fields"].clone(), "numbers": some["numbers"].clone()}
    bare["fields"][:, [1, 2, 4]] = torch.tensor([*SCHEMA.offsets[1:3], SCHEMA.offsets[4]])
    bare["numbers"][:, [2, 3]] = 0
    del bare["content"]
    assert torch.equal(model.user(some), model.user(bare))


@both
def test_cross_numbers_are_read_by_no_tower_and_the_two_tower_reads_none(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    some["numbers"].requires_grad_()
    of_user, of_item = reads(model.user(some), some["numbers"]), reads(model.item(some), some["numbers"])
    assert (of_user, of_item) == (([], []) if kind is TwoTower else ([0, 1], [2]))


@both
def test_every_parameter_code_and_domain_learns(kind: type[nn.Module]) -> None:
    """But for the codes of the context field and of the cross, which are in no tower: the domain is in `domain`."""
    model = build(kind)
    model(batch(300)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    assert model.embed.table.weight.grad[: SCHEMA.offsets[3]].any(dim=1).all()
    assert model.user_tower.domain.weight.grad.any(dim=1).all()
    for layer in model.user_tower.heads.layers:
        assert layer.weight.grad.flatten(1).any(dim=1).all()


@both
def test_the_same_user_looks_for_different_items_in_different_domains(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    elsewhere = {**some, "domain": (some["domain"] + 1) % 3}
    assert not torch.isclose(model.user(some)[:, :8], model.user(elsewhere)[:, :8]).all(dim=1).any()


@both
def test_a_row_is_the_same_alone_and_in_company(kind: type[nn.Module]) -> None:
    model, some = build(kind), batch()
    mine = some["clicked.row"] == 4
    alone = {key: value[4:5] for key, value in some.items() if "." not in key}
    alone |= {"clicked.fields": some["clicked.fields"][mine], "clicked.gap": some["clicked.gap"][mine]}
    alone["clicked.row"] = torch.zeros_like(alone["clicked.gap"])
    torch.testing.assert_close(model(alone), model(some)[4:5], atol=1e-5, rtol=1e-5)


def test_two_tower_vectors_have_length_one() -> None:
    model, some = build(TwoTower), batch()
    torch.testing.assert_close(model.user(some).norm(dim=1), torch.ones(30))
    torch.testing.assert_close(model.item(some).norm(dim=1), torch.ones(30))


def test_the_last_number_of_a_coarse_item_is_its_bias() -> None:
    model, some = build(Coarse), batch()
    assert torch.equal(model.user(some)[:, -1], torch.ones(30))
    without = (model.user(some)[:, :-1] * model.item(some)[:, :-1]).sum(dim=1)
    torch.testing.assert_close(model(some) - without, model.item(some)[:, -1])


@both
def test_works_without_content(kind: type[nn.Module]) -> None:
    some = batch(5)
    del some["content"]
    assert kind(SCHEMA)(some).shape == (5,)


@both
def test_a_misspelt_hyper_parameter_is_an_error(kind: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match="widht"):
        kind(SCHEMA, widht=8)
