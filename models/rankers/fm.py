"""FM: Rendle, Factorization Machines, ICDM 2010.

ŷ = b + Σ w_i + Σ_{i<j} ⟨v_i, v_j⟩ for each label. Differs from the paper: labels share the vectors, each
weighing their components; the vectors are standardised and then scaled by field
(`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import FMPairs, InteractionTerm
from models.layers import Inputs
from models.rankers.lr import LR
from models.schema import Schema


class FM(nn.Module):
    """LR and vectors of `width` numbers, each pair of which adds its inner product."""

    def __init__(self, schema: Schema, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = LR(schema)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.pairs = InteractionTerm(schema, width, FMPairs(width))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.linear(batch) + self.pairs(self.inputs(batch))  # type: ignore[no-any-return]
