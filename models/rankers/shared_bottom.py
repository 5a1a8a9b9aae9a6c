"""Shared bottom: Caruana, Multitask Learning, Machine Learning 28 (1997).

The standardised input is this project's.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Bank, Inputs, mlp
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
        bottom = self.bottom(self.inputs(batch))
        domains, labels = self.shape
        if domains == 1:
            return self.towers(bottom).flatten(1)  # type: ignore[no-any-return]
        tower = batch["domain"][:, None] * labels + torch.arange(labels, device=bottom.device)
        return self.towers.own(bottom.repeat_interleave(labels, dim=0), tower.flatten()).view(-1, labels)
