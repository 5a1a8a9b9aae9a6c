"""IPNN: Qu et al., Product-based Neural Networks for User Response Prediction, ICDM 2016, §III.B.

A network on the vectors and the inner products of all pairs of them. Differs from the paper: its first layer has a full
weight for each pair and not a factorised one, no vector is paired with itself, the vectors are standardised, and the
products divided by √D (`models.interactions.CrossedInputs`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import CrossedInputs, InnerProducts
from models.layers import mlp, vector_roles
from models.schema import Schema


class IPNN(nn.Module):
    """Vectors of `width` numbers, and layers `hidden` on them and on their products."""

    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        products = InnerProducts(len(vector_roles(schema)))
        self.inputs = CrossedInputs(schema, width, products, dropout=dropout)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
