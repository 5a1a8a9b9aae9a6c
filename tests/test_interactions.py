"""Interactions of field vectors against numbers on paper and plain loops, and the rankers made of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, combinations_with_replacement

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models import RANKERS
from models.interactions import CIN, CrossedInputs, FMPairs, GwPFMPairs, InnerProducts, InteractionTerm
from models.rankers.all_interaction import MixtureProducts
from models.rankers.ffm import FFMPairs
from models.rankers.field_projected import ProjectedPairs
from models.rankers.neural_interaction import MixedPairs
from models.schema import Field, Number, Schema

PAPER = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
"""One row of the vectors (1, 2), (3, 4) and (5, 6)."""

SCHEMA = Schema(
    fields=(
        Field("user_id", 40, "user"),
        Field("item_id", 40, "item"),
        Field("hour", 6, "context"),
        Field("author_id", 5, "item"),
    ),
    numbers=(Number("price", "item"),),
    sequences=(),
    labels=("click", "like"),
    domains=("home",),
)
NAMES = (
    "fm",
    "ffm",
    "gwpfm",
    "field_projected",
    "ipnn",
    "deepfm",
    "xdeepfm",
    "all_interaction",
    "neural_interaction",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch_of(rows: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows)
    codes = [torch.randint(field.size, (rows,), generator=random) for field in SCHEMA.fields]
    return {
        "fields": torch.stack(codes, dim=1) + torch.tensor(SCHEMA.offsets),
        "numbers": torch.randn(rows, 1, generator=random),
        "domain": torch.zeros(rows).long(),
    }


def disturbed(name: str, schema: Schema = SCHEMA, **options: object) -> nn.Module:
    """The ranker with every parameter disturbed, so that none is without effect."""
    model = RANKERS[name](schema, **options).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def scaled_vectors(model: nn.Module, batch: dict[str, Tensor], *shape: int) -> Tensor:
    """What the pairs of a second-order model are made of."""
    term = model.pairs
    return (term.vectors(model.inputs(batch)) * term.sizes).unflatten(2, shape)


def by_rows(vectors: Tensor, of_row: Callable[[Tensor], list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(of_row(row)) for row in vectors])


def test_fm_pairs_on_paper() -> None:
    """1·3 + 1·5 + 3·5 = 23 and 2·4 + 2·6 + 4·6 = 44."""
    assert torch.equal(FMPairs(2)(PAPER), torch.tensor([[23.0, 44.0]]))


def test_fm_pairs_against_a_loop_over_pairs() -> None:
    vectors = torch.randn(5, 7, 3)
    loop = by_rows(vectors, lambda v: [sum(v[i] @ v[j] for i, j in combinations(range(7), 2))])
    torch.testing.assert_close(FMPairs(3)(vectors).sum(dim=1, keepdim=True), loop)


def test_the_gradient_of_fm_pairs_is_that_of_its_differences() -> None:
    vectors = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(FMPairs(3), vectors)


def test_inner_products_on_paper() -> None:
    """(1, 2)·(3, 4) = 11, (1, 2)·(5, 6) = 17, (3, 4)·(5, 6) = 39."""
    assert torch.equal(InnerProducts(3)(PAPER), torch.tensor([[11.0, 17.0, 39.0]]))


def test_inner_products_against_a_loop_over_pairs() -> None:
    vectors = torch.randn(5, 7, 3)
    loop = by_rows(vectors, lambda v: [v[i] @ v[j] for i, j in combinations(range(7), 2)])
    torch.testing.assert_close(InnerProducts(7)(vectors), loop)


def test_ffm_pairs_on_paper() -> None:
    """Three fields with parts of one number: v_{1,2}·v_{2,1} = 2·10, v_{1,3}·v_{3,1} = 3·100, v_{2,3}·v_{3,2} = 30·200.
    The parts for a field's own, 1, 20 and 300, meet nobody."""
    vectors = torch.tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]]])
    assert torch.equal(FFMPairs(1)(vectors), torch.tensor([[6320.0]]))


def test_ffm_pairs_against_a_loop_over_pairs() -> None:
    parts = torch.randn(5, 6, 6, 3)
    loop = by_rows(parts, lambda v: [sum(v[i, j] @ v[j, i] for i, j in combinations(range(6), 2))])
    torch.testing.assert_close(FFMPairs(3)(parts.flatten(2)).sum(dim=1, keepdim=True), loop)


def test_gwpfm_pairs_on_paper() -> None:
    """Fields 1 and 3 are the user's, field 2 the item's: w·(v_{1,item}·v_{2,user} + v_{3,item}·v_{2,user}) with w = 3
    is 3·(2·10 + 6·10)."""
    pairs = GwPFMPairs(("user", "item", "user"), 1)
    nn.init.constant_(pairs.weights, 3.0)
    vectors = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [5.0, 6.0]]])
    assert torch.equal(pairs(vectors), torch.tensor([[240.0]]))


def test_gwpfm_pairs_against_four_loops() -> None:
    groups = (0, 1, 0, 2, 1, 2, 2, 0)
    pairs, parts = GwPFMPairs(groups, 4), torch.randn(5, 8, 3, 4)
    pairs.weights.data = torch.tensor([2.0, 3.0, -5.0])
    weights = {(0, 1): 2.0, (0, 2): 3.0, (1, 2): -5.0}

    def of_row(v: Tensor) -> list[Tensor]:
        total = torch.zeros(())
        for g in range(3):
            for h in range(g + 1, 3):
                for i in range(8):
                    for j in range(8):
                        if groups[i] == g and groups[j] == h:
                            total = total + weights[g, h] * (v[i, h] @ v[j, g])
        return [total]

    torch.testing.assert_close(pairs(parts.flatten(2)).sum(dim=1, keepdim=True), by_rows(parts, of_row))


def test_gwpfm_pairs_with_a_group_for_each_field_are_ffm_pairs() -> None:
    vectors = torch.randn(5, 6, 6 * 3)
    torch.testing.assert_close(GwPFMPairs(range(6), 3)(vectors), FFMPairs(3)(vectors))


def test_cin_on_paper() -> None:
    """v_1 = (1, 2), v_2 = (3, 4). The first layer's maps are v_1 ⊙ v_2 = (3, 8) and v_2 ⊙ v_2 = (9, 16); the second's
    is the former times v_2, (9, 32), plus ten times the latter times v_1, (90, 320). Sums: 11, 25, 41 + 410."""
    cin = CIN(2, (2, 1))
    cin.compress[0].weight.data = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    cin.compress[1].weight.data = torch.tensor([[0.0, 1.0, 10.0, 0.0]])
    assert torch.equal(cin(PAPER[:, :2]), torch.tensor([[11.0, 25.0, 451.0]]))


def test_cin_against_loops() -> None:
    cin, vectors = CIN(4, (3, 2, 5)), torch.randn(5, 4, 3)

    def of_row(v: Tensor) -> list[Tensor]:
        x, pooled = v, []
        for layer in cin.compress:
            weight = layer.weight.view(-1, len(x), 4)
            x = torch.stack(
                [sum(w[i, j] * x[i] * v[j] for i in range(len(x)) for j in range(4)) for w in weight],
            )
            pooled += [feature_map.sum() for feature_map in x]
        return pooled

    torch.testing.assert_close(cin(vectors), by_rows(vectors, of_row))


def test_projected_pairs_begin_as_fm() -> None:
    assert torch.equal(ProjectedPairs(3, 2)(PAPER), FMPairs(2)(PAPER))


def test_projected_pairs_against_a_loop_over_pairs() -> None:
    pairs, vectors = ProjectedPairs(4, 3), torch.randn(5, 4, 3)
    pairs.project.data = torch.randn(4, 3, 3)

    def of_row(v: Tensor) -> list[Tensor]:
        return [sum((pairs.project[i] @ v[i]) @ (pairs.project[j] @ v[j]) for i, j in combinations(range(4), 2))]

    torch.testing.assert_close(pairs(vectors).sum(dim=1, keepdim=True), by_rows(vectors, of_row))


def test_mixture_products_on_paper() -> None:
    """The mixtures v_1 + v_2 = (4, 6) and 2·v_3 = (10, 12), times each of the three vectors."""
    products = MixtureProducts(3, 2)
    products.mix.weight.data = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert torch.equal(products(PAPER), torch.tensor([[16.0, 34.0, 36.0, 78.0, 56.0, 122.0]]))


def test_mixed_pairs_on_paper() -> None:
    """The pairs of two vectors are (1, 1), (1, 2) and (2, 2): 1·(1, 4) + 10·(3, 8) + 100·(9, 16)."""
    pairs = MixedPairs(2, 2, mixtures=1)
    pairs.weight.data = torch.tensor([[1.0, 10.0, 100.0]])
    assert torch.equal(pairs(PAPER[:, :2]), torch.tensor([[931.0, 1684.0]]))


def test_mixed_pairs_against_all_products_of_pairs() -> None:
    pairs, vectors = MixedPairs(5, 3, mixtures=4), torch.randn(6, 5, 3)
    products = by_rows(vectors, lambda v: [v[i] * v[j] for i, j in combinations_with_replacement(range(5), 2)])
    assert products.shape == (6, 15, 3)
    torch.testing.assert_close(pairs(vectors), torch.stack([(pairs.weight @ row).flatten() for row in products]))


def test_a_gate_with_zero_weights_passes_all_mixed_pairs_and_a_closed_one_none() -> None:
    gated = MixedPairs(3, 2, mixtures=4, gate=5)
    plain = MixedPairs(3, 2, mixtures=4)
    plain.weight.data = gated.weight.data
    for parameter in gated.gate.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(gated(PAPER), plain(PAPER))
    nn.init.constant_(gated.gate.net[-1].bias, -200.0)
    assert not gated(PAPER).any()


BLOCKS = {
    "fm": lambda n: FMPairs(4),
    "inner products": InnerProducts,
    "ffm": lambda n: FFMPairs(4),
    "gwpfm": lambda n: GwPFMPairs(range(n), 4),
    "cin": lambda n: CIN(n, (3, 2)),
    "field-projected": lambda n: ProjectedPairs(n, 4),
    "mixture products": lambda n: MixtureProducts(n, 3),
    "mixed pairs": lambda n: MixedPairs(n, 4, 3),
    "gated pairs": lambda n: MixedPairs(n, 4, 3, gate=5),
}


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_says_its_width(name: str, vectors: int, rows: int) -> None:
    block = BLOCKS[name](vectors)
    parts = vectors if name in ("ffm", "gwpfm") else 1
    out = block(torch.randn(rows, vectors, parts * 4))
    assert out.shape == (rows, block.width)
    assert out.isfinite().all()


def test_an_interaction_term_begins_as_a_hundredth_of_the_plain_sum_for_every_label() -> None:
    """FM's pairs of vectors a tenth as long; the fifth vector is the map of the number."""
    term = InteractionTerm(SCHEMA, 2, FMPairs(2))
    nn.init.zeros_(term.vectors.maps[0].weight)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 9.0]])
    torch.testing.assert_close(term(x), torch.tensor([[0.67, 0.67]]))


def test_an_interaction_term_weighs_numbers_by_label_and_sizes_vectors_by_field() -> None:
    term = InteractionTerm(SCHEMA, 2, FMPairs(2))
    nn.init.zeros_(term.vectors.maps[0].weight)
    term.sizes.data = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 10.0], [1.0, 1.0], [1.0, 1.0]])
    term.weights.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 9.0]])
    expected = torch.tensor([[1.0 * 6, -(2.0 * 4 + 2 * 60 + 4 * 60)]])
    torch.testing.assert_close(term(x), expected)


def test_crossed_inputs_are_the_input_and_the_interaction_over_the_root_of_the_width() -> None:
    crossed, batch = CrossedInputs(SCHEMA, 4, InnerProducts(5)), batch_of(20)
    x = crossed.inputs.eval()(batch)
    products = InnerProducts(5)(crossed.vectors(x))
    assert crossed.width == 4 * 4 + 1 + 10
    torch.testing.assert_close(crossed(batch), torch.cat([x, products / 2], dim=1))


Products = Callable[[Tensor, int, int], Tensor]


@pytest.mark.parametrize(
    ("name", "parts", "product"),
    [
        ("fm", 1, lambda v, i, j: v[i, 0] * v[j, 0]),
        ("ffm", 5, lambda v, i, j: v[i, j] * v[j, i]),
    ],
)
def test_the_logit_is_lr_and_the_sum_over_pairs_weighed_by_label(name: str, parts: int, product: Products) -> None:
    model, batch = disturbed(name, width=3), batch_of(6)
    vectors = scaled_vectors(model, batch, parts, 3)

    def of_row(v: Tensor) -> list[Tensor]:
        pairs = list(combinations(range(5), 2))
        return [sum(product(v, i, j) @ weights for i, j in pairs) for weights in model.pairs.weights.T]

    torch.testing.assert_close(model(batch), model.linear(batch) + by_rows(vectors, of_row), atol=1e-4, rtol=1e-4)


def test_gwpfm_lets_the_roles_meet() -> None:
    """user_id with item_id, author_id and the item's number, these with hour, and user_id with hour."""
    model, batch = disturbed("gwpfm", width=3), batch_of(6)
    parts = scaled_vectors(model, batch, 3, 3)
    user_item, user_context, item_context = model.pairs.interaction.weights

    def of_row(v: Tensor) -> list[Tensor]:
        of_users, hour = v[0], v[2]
        total = user_context * of_users[2] * hour[0]
        for of_items in (v[1], v[3], v[4]):
            total = total + user_item * of_users[1] * of_items[0] + item_context * of_items[2] * hour[1]
        return [total @ weights for weights in model.pairs.weights.T]

    torch.testing.assert_close(model(batch), model.linear(batch) + by_rows(parts, of_row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("groups", "count"), [((), 3), (("a", "b", "a", "b"), 2), ((0, 1, 2, 3), 4)])
def test_gwpfm_has_n_g_d_and_g_over_2_parameters(groups: tuple[int | str, ...], count: int) -> None:
    """Beside LR, and the sizes and weights of the term made of them."""
    schema = Schema(SCHEMA.fields, (), (), ("click",), ("home",))
    model = RANKERS["gwpfm"](schema, width=8, groups=groups)
    codes = 40 + 40 + 6 + 5
    parameters = sum(p.numel() for p in [*model.inputs.parameters(), *model.pairs.interaction.parameters()])
    assert parameters == codes * count * 8 + count * (count - 1) // 2


def test_field_projected_without_projections_is_fm() -> None:
    projected, fm, batch = disturbed("field_projected"), disturbed("fm"), batch_of(6)
    projected.pairs.interaction.project.data = torch.eye(16).repeat(5, 1, 1)
    fm.load_state_dict({key: value for key, value in projected.state_dict().items() if not key.endswith("project")})
    torch.testing.assert_close(projected(batch), fm(batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "explicit"), [("deepfm", "pairs"), ("xdeepfm", "cin")])
def test_deep_and_explicit_part_are_added_and_read_the_same_vectors(name: str, explicit: str) -> None:
    """Each part alone trains the one table of vectors."""
    model, batch = disturbed(name), batch_of(6)
    x = model.inputs(batch)
    parts = [model.linear(batch), getattr(model, explicit)(x), model.net(x)]
    torch.testing.assert_close(model(batch), sum(parts), atol=1e-4, rtol=1e-4)
    for part in parts[1:]:
        (gradient,) = torch.autograd.grad(part.sum(), model.inputs.embed.table.weight, retain_graph=True)
        assert gradient[batch["fields"].unique()].any(dim=1).all()


def test_a_gated_neural_interaction_trains_its_gate() -> None:
    model, batch = disturbed("neural_interaction", gate=8), batch_of(60)
    model(batch).sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.fixture(scope="module")
def market() -> dict[str, Tensor]:
    """Every user with every item. A user and an item are each of one of two kinds for clicks, and of other two for
    likes; equal kinds attract each other. No field says anything alone."""
    random = torch.Generator().manual_seed(0)
    user, item = torch.cartesian_prod(torch.arange(40), torch.arange(40))[torch.randperm(1600, generator=random)].T
    kinds = torch.randint(2, (2, 40, 2), generator=random)
    batch = batch_of(1600)
    batch["fields"][:, 0], batch["fields"][:, 1] = user, item + 40
    return {**batch, "labels": (kinds[0, user] == kinds[1, item]).float()}


def log_loss_on_unseen_pairs(name: str, market: dict[str, Tensor]) -> float:
    """After sixty steps on three quarters of the pairs."""
    model = RANKERS[name](SCHEMA)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        rows = torch.randint(1200, (256,))
        optimiser.zero_grad()
        seen = {key: value[rows] for key, value in market.items()}
        binary_cross_entropy_with_logits(model(seen), seen["labels"]).backward()
        optimiser.step()
    unseen = {key: value[1200:] for key, value in market.items()}
    return binary_cross_entropy_with_logits(model.eval()(unseen), unseen["labels"]).item()


def test_lr_cannot_see_who_attracts_whom(market: dict[str, Tensor]) -> None:
    assert log_loss_on_unseen_pairs("lr", market) > 0.65


@pytest.mark.parametrize("name", NAMES)
def test_interactions_find_who_attracts_whom(name: str, market: dict[str, Tensor]) -> None:
    assert log_loss_on_unseen_pairs(name, market) < 0.3
