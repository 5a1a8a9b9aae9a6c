"""RecycleNet: a layer that gates its own input with what it first made of it, and then uses its weights again.

ReLU(W₁ (x ⊙ 2σ(W₂ ReLU(W₁ x + b₁) + b₂)) + b₁), in the place of each ReLU layer that narrows. No paper is known for
it; it is LHUC with the layer itself as context.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs
from models.schema import Schema


class Recycle(nn.Module):
    """`narrow` is W₁ and b₁, `widen` is W₂ and b₂."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(into, out)
        self.widen = nn.Linear(out, into)

    def forward(self, x: Float[Tensor, "B into"]) -> Float[Tensor, "B out"]:
        gate = 2 * torch.sigmoid(self.widen(self.narrow(x).relu()))
        return self.narrow(x * gate).relu()  # type: ignore[no-any-return]


class RecycleNet(nn.Module):
    """Recycling layers `hidden` and a linear one."""

    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        sizes = (self.inputs.width, *hidden)
        self.recycle = nn.Sequential(*(Recycle(into, out) for into, out in pairwise(sizes)))
        self.out = nn.Linear(sizes[-1], len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.out(self.recycle(self.inputs(batch)))  # type: ignore[no-any-return]
