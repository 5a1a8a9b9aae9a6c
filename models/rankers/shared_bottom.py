"""Shared bottom: Caruana, Multitask Learning, Machine Learning 28 (1997).

The standardised input is this project's.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Bank, Inputs, mlp
from models.schema import Schema


class SharedBottom(nn.Module):
    """One network with layers `hidden`, and a tower with layers `tower` on it for each label."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.bottom = nn.Sequential(mlp(self.inputs.width, *hidden), nn.ReLU())
        self.towers = Bank(len(schema.labels), hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.towers(self.bottom(self.inputs(batch))).flatten(1)  # type: ignore[no-any-return]
