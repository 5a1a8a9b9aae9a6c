"""Field-projected interaction: Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024
(arXiv:2403.00793), §4.4.

FM with ⟨P_{f(i)} e_i, P_{f(j)} e_j⟩ in the place of ⟨e_i, e_j⟩, so that a field whose codes fill few dimensions need
not pull the others' vectors into these. One matrix a field says nothing that FM's vectors could not (P e is a vector
too): it changes how they are learnt, and on the collapsing world of the tests they fill no more directions.

Differs from the paper, where projections come as a part of DCNv2: they stand alone here; labels share vectors and
projections, each weighing the components; the vectors are standardised and then scaled by field
(`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import FMPairs, InteractionTerm
from models.layers import Inputs, vector_roles
from models.rankers.lr import LR
from models.schema import Schema


class ProjectedPairs(nn.Module):
    """FM's pairs of vectors that have each passed a full matrix of their field's, which begins as the identity."""

    def __init__(self, vectors: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Parameter(torch.eye(width).repeat(vectors, 1, 1))
        self.pairs = FMPairs(width)

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        return self.pairs(torch.einsum("nij,bnj->bni", self.project, vectors))  # type: ignore[no-any-return]


class FieldProjected(nn.Module):
    """LR and vectors of `width` numbers, which meet each other behind their field's projection."""

    def __init__(self, schema: Schema, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = LR(schema)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.pairs = InteractionTerm(schema, width, ProjectedPairs(len(vector_roles(schema)), width))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.linear(batch) + self.pairs(self.inputs(batch))  # type: ignore[no-any-return]
