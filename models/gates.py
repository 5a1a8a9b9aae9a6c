"""Gates: what decides how much of a signal passes, or whose."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.layers import BankLinear, linear, mlp


class GateNU(nn.Module):
    """γ·σ(W'·ReLU(Wx + b) + b') with γ = 2, so that a gate without an opinion is 1 (Chang et al., PEPNet, KDD 2023,
    §3.2)."""

    def __init__(self, into: int, out: int, hidden: int) -> None:
        super().__init__()
        self.net = mlp(into, hidden, out)

    def forward(self, *parts: Float[Tensor, "_ _"]) -> Float[Tensor, "B out"]:
        """Of x, or of the parts that it has side by side (`layers.linear`)."""
        first, activation, last = self.net
        return 2 * last(activation(linear(first, *parts))).sigmoid_()  # type: ignore[arg-type, no-any-return]


class EmbeddingGate(nn.Module):
    """EPNet: GateNU(domain ‖ sg(x)) ⊙ x (Chang et al., PEPNet, KDD 2023, §3.2)."""

    def __init__(self, domains: int, width: int, into: int, hidden: int) -> None:
        super().__init__()
        self.domain = nn.Embedding(domains, width)
        self.gate = GateNU(width + into, into, hidden)

    def forward(self, x: Float[Tensor, "B into"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B into"]:
        return x * self.gate(self.domain(domain), x.detach())  # type: ignore[no-any-return]


class GatedTowers(nn.Module):
    """PPNet: a tower for each task, each hidden layer of it times GateNU(prior ‖ sg(x)) (Chang et al., PEPNet, KDD
    2023, §3.2). `gate` is the hidden size of the one network that makes all these gates from the `told` numbers."""

    def __init__(self, tasks: int, into: int, told: int, hidden: tuple[int, ...], gate: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gate = GateNU(told, tasks * sum(hidden), gate)
        self.layers = nn.ModuleList(BankLinear(tasks, *sizes) for sizes in pairwise((into, *hidden, 1)))

    def forward(self, x: Float[Tensor, "B ..."], *told: Float[Tensor, "B _"]) -> Float[Tensor, "B T"]:
        """From one input for all towers (B, into) or one for each (B, T, into); `told` are prior and sg(x)."""
        gates = self.gate(*told).unflatten(1, (-1, sum(self.hidden))).split(self.hidden, dim=-1)
        for layer, gate in zip(self.layers, gates, strict=False):
            x = layer(x).relu() * gate
        return self.layers[-1](x).squeeze(-1)  # type: ignore[no-any-return]


class SoftmaxGate(nn.Module):
    """G distributions over K experts.

    In training each weight is dropped with probability `dropout` and the rest rescaled to sum to 1, against a gate
    that always takes the same expert (Zhao et al., Recommending What Video to Watch Next, RecSys 2019, §4.2). Where
    all would be dropped, none is.
    """

    def __init__(self, into: int, gates: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.score = BankLinear(gates, into, experts)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B G K"]:
        """From one input for all gates (B, into) or one for each (B, G, into)."""
        scores: Tensor = self.score(x)
        kept = functional.dropout(torch.ones_like(scores), self.dropout, self.training) > 0
        kept |= ~kept.any(dim=-1, keepdim=True)
        return scores.masked_fill(~kept, -torch.inf).softmax(dim=-1)
