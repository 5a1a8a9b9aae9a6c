"""GwPFM, the group-weighted part-aware FM: Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024
(arXiv:2403.00793), §4.3.

ŷ = b + Σ w_i + Σ_{g<h} w_{gh} Σ_{i∈g} Σ_{j∈h} ⟨v_{i,h}, v_{j,g}⟩ for each label: FFM in which fields of a group share
their parts and do not meet, so that n codes have n·G·D numbers and G(G−1)/2 weights of groups. Differs from the paper,
where it is one expert among others: a linear part is added; labels share the vectors and w_{gh}, each weighing the
components of a part; the vectors are standardised and then scaled by field (`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import GwPFMPairs, InteractionTerm
from models.layers import Inputs, vector_roles
from models.rankers.lr import LR
from models.schema import Schema


class GwPFM(nn.Module):
    """`width` is that of one part, of which a code has one for each group. `groups` names the group of each vector, in
    the order of `models.layers.FieldVectors`; when empty, vectors are grouped by role."""

    def __init__(
        self, schema: Schema, *, width: int = 16, groups: tuple[int | str, ...] = (), dropout: float = 0.0
    ) -> None:
        super().__init__()
        grouping = groups or vector_roles(schema)
        whole = width * len(set(grouping))
        self.linear = LR(schema)
        self.inputs = Inputs(schema, whole, dropout=dropout)
        self.pairs = InteractionTerm(schema, whole, GwPFMPairs(grouping, width))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.linear(batch) + self.pairs(self.inputs(batch))  # type: ignore[no-any-return]
