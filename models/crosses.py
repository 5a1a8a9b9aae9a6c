"""Cross networks: x_{l+1} = x_l + cross_l(x_0, x_l), where a cross is any module that says what its layer adds.

A cross may make `out` of the `into` features, from its share of x_0 and all of x_l; that is what heads are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.layers import Bank, mix, mlp


class ScalarCross(nn.Module):
    """x_0 (xᵀw) + b: the same factor for all of x_0 (Wang et al., DCN, ADKDD 2017, eq. 3)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(into, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x0: Float[Tensor, "B out"], x: Float[Tensor, "B into"]) -> Float[Tensor, "B out"]:
        return x0 * self.weigh(x) + self.bias  # type: ignore[no-any-return]


class Cross(nn.Module):
    """x_0 ⊙ project(x): a factor for each feature of x_0 (Wang et al., DCN V2, WWW 2021, eq. 1)."""

    def __init__(self, project: nn.Module) -> None:
        super().__init__()
        self.project = project

    def forward(self, x0: Float[Tensor, "B out"], x: Float[Tensor, "B into"]) -> Float[Tensor, "B out"]:
        return x0 * self.project(x)  # type: ignore[no-any-return]


def gated(into: int, out: int) -> nn.Module:
    """(W x + b) ⊙ σ(V x + c)."""
    return nn.Sequential(nn.Linear(into, 2 * out), nn.GLU())


def low_rank(into: int, out: int, rank: int) -> nn.Module:
    """U Vᵀ x + b."""
    return nn.Sequential(nn.Linear(into, rank, bias=False), nn.Linear(rank, out))


class LowRankExperts(nn.Module):
    """Σ_i G_i(x) (U_i g(C_i g(V_iᵀ x)) + b_i) with a softmax G over the experts and g = ReLU (DCN V2, eq. 3 and 4).

    The inner layers have biases, which the paper has not. x_0 ⊙ of this is the paper's mixture of crosses.
    """

    def __init__(self, into: int, out: int, rank: int, experts: int) -> None:
        super().__init__()
        self.gate = SoftmaxGate(into, 1, experts, dropout=0.0)
        self.experts = Bank(experts, into, rank, rank, out)

    def forward(self, x: Float[Tensor, "B into"]) -> Float[Tensor, "B out"]:
        return mix(self.gate(x), self.experts(x))[:, 0]


class HeadedCross(nn.Module):
    """Each head crosses its own segment of x_0, of nearly equal sizes, with all of x.

    `heads` are what makes a cross of (into, out).
    """

    def __init__(self, width: int, heads: Sequence[Callable[[int, int], nn.Module]]) -> None:
        super().__init__()
        self.sizes = [len(segment) for segment in torch.arange(width).tensor_split(len(heads))]
        self.heads = nn.ModuleList(head(width, size) for head, size in zip(heads, self.sizes, strict=True))

    def forward(self, x0: Float[Tensor, "B D"], x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        segments = x0.split(self.sizes, dim=1)
        return torch.cat([head(segment, x) for head, segment in zip(self.heads, segments, strict=True)], dim=1)


class CrossNetwork(nn.Module):
    """One cross after another."""

    def __init__(self, crosses: Iterable[nn.Module]) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(crosses)

    def forward(self, x0: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        x = x0
        for cross in self.crosses:
            x = x + cross(x0, x)
        return x


class CrossAndDeep(nn.Module):
    """A cross network beside an MLP with layers `hidden`, and a linear layer on both (DCN, §2.4)."""

    def __init__(self, crosses: Iterable[nn.Module], width: int, hidden: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.cross = CrossNetwork(crosses)
        self.deep = nn.Sequential(mlp(width, *hidden), nn.ReLU())
        self.combine = nn.Linear(width + hidden[-1], out)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B out"]:
        return self.combine(torch.cat([self.cross(x), self.deep(x)], dim=1))  # type: ignore[no-any-return]
