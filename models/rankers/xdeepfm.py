"""xDeepFM: Lian et al., Combining Explicit and Implicit Feature Interactions for Recommender Systems, KDD 2018.

The logits of LR, of a network and of a compressed interaction network are added; the latter two read the same vectors.
Differs from the paper: the vectors are standardised, and for the compressed interaction network scaled by field
(`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import CIN, InteractionTerm
from models.layers import Inputs, mlp, vector_roles
from models.rankers.lr import LR
from models.schema import Schema


class XDeepFM(nn.Module):
    """`maps` are the feature maps in each layer of the compressed interaction network, `hidden` the deep layers."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        maps: tuple[int, ...] = (16, 16),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = LR(schema)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.cin = InteractionTerm(schema, width, CIN(len(vector_roles(schema)), maps))
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        return self.linear(batch) + self.cin(x) + self.net(x)  # type: ignore[no-any-return]
