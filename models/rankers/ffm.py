"""FFM: Juan et al., Field-aware Factorization Machines for CTR Prediction, RecSys 2016.

ŷ = b + Σ w_i + Σ_{i<j} ⟨v_{i,f_j}, v_{j,f_i}⟩ for each label: a code has one part for every field it may meet, where a
history is a field of its own, and so are the numbers of a role. Differs from the paper: a linear part is added; labels
share the vectors, each weighing the components of a part; the vectors are standardised and then scaled by field
(`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import InteractionTerm
from models.layers import Inputs, vector_roles
from models.rankers.lr import LR
from models.schema import Schema


class FFMPairs(nn.Module):
    """Σ_{i<j} v_{i,j} ⊙ v_{j,i}, whose D = `width` numbers sum to the FFM.

    A vector is N parts next to each other, one for meeting each of the N; the one for itself meets nobody.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, vectors: Float[Tensor, "B N parts"]) -> Float[Tensor, "B D"]:
        parts: Tensor = vectors.unflatten(2, (-1, self.width))
        both_ways = (parts * parts.transpose(1, 2)).sum(dim=(1, 2))
        itself = parts.diagonal(dim1=1, dim2=2).square().sum(dim=-1)
        return (both_ways - itself) / 2


class FFM(nn.Module):
    """`width` is that of one part, so a code's vector has `width` times as many numbers as there are fields."""

    def __init__(self, schema: Schema, *, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        whole = width * len(vector_roles(schema))
        self.linear = LR(schema)
        self.inputs = Inputs(schema, whole, dropout=dropout)
        self.pairs = InteractionTerm(schema, whole, FFMPairs(width))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.linear(batch) + self.pairs(self.inputs(batch))  # type: ignore[no-any-return]
