"""Cross networks, scaled hidden units, recycled layers and weighted fields against numbers on paper and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from test_rankers import build, examples, lively, pack
from torch import Tensor, nn
from torch.nn import functional

from models.crosses import (
    Cross,
    CrossAndDeep,
    CrossNetwork,
    HeadedCross,
    LowRankExperts,
    ScalarCross,
    gated,
    low_rank,
)
from models.layers import mlp
from models.rankers.recyclenet import Recycle
from models.rankers.senet import SqueezeExcite


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def affine(weight: Tensor, bias: Tensor | None, x: list[float]) -> list[float]:
    """W x + b, number by number; W is (out, into)."""
    biases = [0.0] * len(weight) if bias is None else bias.tolist()
    return [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(weight.tolist(), biases, strict=True)]


def by_rows(function, *inputs: Tensor) -> Tensor:
    return torch.tensor([function(*(part.tolist() for part in row)) for row in zip(*inputs, strict=True)])


def test_scalar_cross_on_paper() -> None:
    """x_0 = (1, 2), w = (3, 1), b = (0, 10): x_1 = 5·(1, 2) + (0, 10) + (1, 2) = (6, 22),
    x_2 = 40·(1, 2) + (0, 10) + (6, 22) = (46, 112)."""
    cross = ScalarCross(2, 2)
    cross.weigh.weight.data, cross.bias.data = torch.tensor([[3.0, 1.0]]), torch.tensor([0.0, 10.0])
    x0 = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(CrossNetwork([cross])(x0), torch.tensor([[6.0, 22.0]]))
    torch.testing.assert_close(CrossNetwork([cross, cross])(x0), torch.tensor([[46.0, 112.0]]))


def test_matrix_cross_on_paper() -> None:
    """x_0 = (1, 2), W = ((1, 1), (0, 3)), b = (0, 1): W x_0 + b = (3, 7), x_1 = (1·3 + 1, 2·7 + 2) = (4, 16),
    W x_1 + b = (20, 49), x_2 = (20 + 4, 98 + 16) = (24, 114)."""
    project = nn.Linear(2, 2)
    project.weight.data, project.bias.data = torch.tensor([[1.0, 1.0], [0.0, 3.0]]), torch.tensor([0.0, 1.0])
    x0 = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(CrossNetwork([Cross(project)])(x0), torch.tensor([[4.0, 16.0]]))
    torch.testing.assert_close(CrossNetwork([Cross(project), Cross(project)])(x0), torch.tensor([[24.0, 114.0]]))


def test_gated_cross_against_a_loop() -> None:
    torch.manual_seed(0)
    x0, x, cross = torch.randn(5, 3), torch.randn(5, 3), Cross(gated(3, 3))
    linear = cross.project[0]
    (W, V), (b, c) = linear.weight.chunk(2), linear.bias.chunk(2)

    def slow(x0: list[float], x: list[float]) -> list[float]:
        return [e * u * sigmoid(v) for e, u, v in zip(x0, affine(W, b, x), affine(V, c, x), strict=True)]

    torch.testing.assert_close(cross(x0, x), by_rows(slow, x0, x))


def test_a_gated_cross_whose_gate_is_open_or_shut_is_a_matrix_cross_or_nothing() -> None:
    x0, x, cross = torch.randn(5, 3), torch.randn(5, 3), Cross(gated(3, 3))
    linear = cross.project[0]
    linear.weight.data[3:] = 0
    linear.bias.data[3:] = 100
    torch.testing.assert_close(cross(x0, x), x0 * functional.linear(x, linear.weight[:3], linear.bias[:3]))
    linear.bias.data[3:] = -200
    assert torch.equal(cross(x0, x), torch.zeros(5, 3))


def test_low_rank_is_a_matrix_of_that_rank() -> None:
    torch.manual_seed(0)
    project, x = low_rank(5, 4, rank=2), torch.randn(6, 5)
    inner, outer = project
    W = outer.weight @ inner.weight
    assert torch.linalg.matrix_rank(W) == 2
    torch.testing.assert_close(project(x), functional.linear(x, W, outer.bias))


def test_low_rank_experts_against_a_loop() -> None:
    torch.manual_seed(0)
    experts, x = LowRankExperts(4, 3, rank=2, experts=3), torch.randn(6, 4)
    V, C, U = experts.experts.layers
    gate = experts.gate.score

    def slow(x: list[float]) -> list[float]:
        scores = [math.exp(score) for score in affine(gate.weight[0].T, gate.bias[0], x)]
        total = [0.0] * 3
        for i, score in enumerate(scores):
            hidden = [max(0.0, h) for h in affine(V.weight[i].T, V.bias[i], x)]
            hidden = [max(0.0, h) for h in affine(C.weight[i].T, C.bias[i], hidden)]
            out = affine(U.weight[i].T, U.bias[i], hidden)
            total = [t + score / sum(scores) * o for t, o in zip(total, out, strict=True)]
        return total

    torch.testing.assert_close(experts(x), by_rows(slow, x))


def test_heads_make_their_own_segments_from_all_of_x() -> None:
    """Seven features in heads of 3, 2 and 2."""
    torch.manual_seed(0)
    heads = [ScalarCross, lambda into, out: Cross(nn.Linear(into, out)), lambda into, out: Cross(gated(into, out))]
    cross, x0, x = HeadedCross(7, heads), torch.randn(5, 7), torch.randn(5, 7)
    assert cross.sizes == [3, 2, 2]
    scalar, full, gate = cross.heads
    scalar.bias.data = torch.tensor([1.0, 2.0, 3.0])
    out = cross(x0, x)
    torch.testing.assert_close(out[:, :3], x0[:, :3] * (x @ scalar.weigh.weight[0])[:, None] + scalar.bias)
    torch.testing.assert_close(out[:, 3:5], x0[:, 3:5] * (x @ full.project.weight.T + full.project.bias))
    both = x @ gate.project[0].weight.T + gate.project[0].bias
    torch.testing.assert_close(out[:, 5:], x0[:, 5:] * both[:, :2] * both[:, 2:].sigmoid())


def test_mmcn_with_matrix_heads_alone_is_dcnv2() -> None:
    headed, plain = lively(build("mmcn", heads=("matrix", "matrix"))), build("dcnv2").eval()
    state = headed.state_dict()
    for i in range(3):
        for part in ("weight", "bias"):
            keys = [f"net.cross.crosses.{i}.heads.{head}.project.{part}" for head in (0, 1)]
            state[f"net.cross.crosses.{i}.project.{part}"] = torch.cat([state.pop(key) for key in keys])
    plain.load_state_dict(state)
    batch = pack(examples(20))
    torch.testing.assert_close(headed(batch), plain(batch), atol=1e-4, rtol=1e-4)


def test_cross_and_deep_stand_side_by_side() -> None:
    """Without either, the other is left: x + x ⊙ (W x + b), or a network with ReLU after its last layer too."""
    net, x = CrossAndDeep([Cross(nn.Linear(3, 3))], 3, (5, 4), 2), torch.randn(6, 3)
    combine, (first, _, last) = net.combine, net.deep[0]
    nn.init.zeros_(combine.bias)
    crossed, deep = x + x * net.cross.crosses[0].project(x), last(first(x).relu()).relu()
    both = crossed @ combine.weight[:, :3].T + deep @ combine.weight[:, 3:].T
    torch.testing.assert_close(net(x), both)


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 8, "experts": 3}])
def test_every_part_of_the_variants_of_dcnv2_learns(options: dict[str, int]) -> None:
    model = lively(build("dcnv2", **options)).train()
    model(pack(examples(300))).sigmoid().square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.any(), key
        if "experts" in key:
            assert parameter.grad.flatten(1).any(dim=1).all(), key


def test_experts_without_a_rank_are_an_error() -> None:
    with pytest.raises(ValueError, match="give a rank"):
        build("dcnv2", experts=2)


def scales(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    user = model.inputs(batch)[:, : 2 * 16]
    return model.gate(torch.cat([user, model.domain(batch["domain"])], dim=1))


def test_lhuc_with_scales_of_one_is_the_plain_network() -> None:
    """A gate whose weights are zero is 2σ(0) = 1."""
    model, batch = lively(build("lhuc")), pack(examples(20))
    for parameter in model.gate.parameters():
        nn.init.zeros_(parameter)
    plain = mlp(model.inputs.width, 128, 64, 2)
    for linear, layer in zip(plain[::2], model.layers, strict=True):
        linear.load_state_dict(layer.state_dict())
    torch.testing.assert_close(model(batch), plain(model.inputs(batch)))


def test_lhuc_scales_each_hidden_unit_by_who_looks_and_where() -> None:
    """The two user fields come first in the input; written out layer by layer."""
    model, batch = lively(build("lhuc", hidden=(6, 4))), pack(examples(20))
    scale = scales(model, batch)
    assert scale.min() > 0
    assert scale.max() < 2
    first, second, last = model.layers
    x = torch.relu(first(model.inputs(batch))) * scale[:, :6]
    x = torch.relu(second(x)) * scale[:, 6:]
    torch.testing.assert_close(model(batch), last(x))
    other_item = {**batch, "fields": batch["fields"].clone()}
    other_item["fields"][:, 2] = 71 + 4
    torch.testing.assert_close(scales(model, other_item), scale)
    elsewhere = {**batch, "domain": (batch["domain"] + 1) % 3}
    assert (scales(model, elsewhere) != scale).any(dim=1).all()


def test_lhuc_trains_what_its_context_is_made_of_and_nothing_else_through_the_gate() -> None:
    """With a first layer that sees nothing of the input, gradients reach the table through the gate alone."""
    model, batch = lively(build("lhuc")), pack(examples(50))
    nn.init.zeros_(model.layers[0].weight)
    model(batch).sum().backward()
    gradient = model.inputs.embed.table.weight.grad
    assert gradient[batch["fields"][:, :2].unique()].any(dim=1).all()
    assert not gradient[71 + 4 :].any()


def test_recycle_on_paper() -> None:
    """x = (1, 2), W₁ = (1, 1), b₁ = −1: ReLU(2) = 2. W₂ = (0, ln 3), b₂ = 0: 2σ(0) = 1 and 2σ(2 ln 3) = 1.8, so
    that x becomes (1, 3.6) and the second use gives 3.6."""
    layer = Recycle(2, 1)
    layer.narrow.weight.data, layer.narrow.bias.data = torch.tensor([[1.0, 1.0]]), torch.tensor([-1.0])
    layer.widen.weight.data, layer.widen.bias.data = torch.tensor([[0.0], [math.log(3)]]), torch.zeros(2)
    torch.testing.assert_close(layer(torch.tensor([[1.0, 2.0]])), torch.tensor([[3.6]]))
    torch.testing.assert_close(layer(torch.tensor([[0.0, 0.5]])), torch.tensor([[0.0]]))


def test_recycle_against_a_loop_and_its_weights_are_used_twice() -> None:
    torch.manual_seed(0)
    layer, x = Recycle(4, 3), torch.randn(6, 4)
    (W1, b1), (W2, b2) = layer.narrow.parameters(), layer.widen.parameters()

    def slow(x: list[float]) -> list[float]:
        first = [max(0.0, h) for h in affine(W1, b1, x)]
        gated = [2 * v * sigmoid(h) for v, h in zip(x, affine(W2, b2, first), strict=True)]
        return [max(0.0, h) for h in affine(W1, b1, gated)]

    torch.testing.assert_close(layer(x), by_rows(slow, x))
    assert sorted(dict(layer.named_parameters())) == ["narrow.bias", "narrow.weight", "widen.bias", "widen.weight"]
    inner, outer = (W1.detach().clone().requires_grad_() for _ in range(2))
    gate = 2 * torch.sigmoid(functional.linear(functional.linear(x, inner, b1).relu(), W2, b2))
    functional.linear(x * gate, outer, b1).relu().sum().backward()
    layer.zero_grad()
    layer(x).sum().backward()
    torch.testing.assert_close(W1.grad, inner.grad + outer.grad)


def test_squeeze_excite_on_paper() -> None:
    """Means 2 and 4. W₁ = (1, −½) squeezes them to 0, so that both weights are σ(0) = ½; W₁ = (1, 0) to 2, and
    W₂ = (0, ln 3 / 2) makes ½ and σ(ln 3) = ¾ of it."""
    net = SqueezeExcite(2, reduction=2)
    net.excite.weight.data = torch.tensor([[0.0], [math.log(3) / 2]])
    vectors = torch.tensor([[[1.0, 3.0], [4.0, 4.0]]])
    net.squeeze.weight.data = torch.tensor([[1.0, -0.5]])
    torch.testing.assert_close(net(vectors), vectors / 2)
    net.squeeze.weight.data = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(net(vectors), torch.tensor([[[0.5, 1.5], [3.0, 3.0]]]))


def test_squeeze_excite_against_a_loop() -> None:
    torch.manual_seed(0)
    net, vectors = SqueezeExcite(6, reduction=3), torch.randn(5, 6, 4)
    assert net.squeeze.weight.shape == (2, 6)

    def slow(*fields: list[float]) -> list[list[float]]:
        means = [sum(field) / 4 for field in fields]
        hidden = [max(0.0, h) for h in affine(net.squeeze.weight, None, means)]
        weights = [sigmoid(score) for score in affine(net.excite.weight, None, hidden)]
        return [[weight * value for value in field] for weight, field in zip(weights, fields, strict=True)]

    torch.testing.assert_close(net(vectors), torch.tensor([slow(*row) for row in vectors.tolist()]))


def test_senet_without_excitement_is_a_plain_network_on_half_of_every_vector_and_the_numbers() -> None:
    """σ(0) = ½ for all fields."""
    model, batch = lively(build("senet")), pack(examples(20))
    nn.init.zeros_(model.weigh.excite.weight)
    x = model.inputs(batch)
    plain = model.net(torch.cat([model.vectors(x).flatten(1) / 2, x[:, -2:]], dim=1))
    torch.testing.assert_close(model(batch), plain)
