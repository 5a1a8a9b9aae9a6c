"""Shared bottom: Caruana, Multitask Learning, Machine Learning 28 (1997).

The standardised input is this project's.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Bank, Inputs, mlp, pick
from models.schema import Schema


class SharedBottom(nn.Module):
    """One network with layers `hidden`, and a tower with layers `tower` on it for each label, or for each label and
    domain if `by_domain`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        by_domain: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.bottom = nn.Sequential(mlp(self.inputs.width, *hidden), nn.ReLU())
        self.shape = (len(schema.domains) if by_domain else 1, len(schema.labels))
        self.towers = Bank(math.prod(self.shape), hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        towers = self.towers(self.bottom(self.inputs(batch))).view(-1, *self.shape)
        return pick(towers, batch["domain"]) if self.shape[0] > 1 else towers[:, 0]
