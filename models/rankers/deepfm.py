"""DeepFM: Guo et al., DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, IJCAI 2017.

The logits of an FM and of a network are added; both read the same vectors. Differs from the paper: the vectors are
standardised, and for the FM scaled by field (`models.interactions.InteractionTerm`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import FMPairs, InteractionTerm
from models.layers import Inputs, mlp
from models.rankers.lr import LR
from models.schema import Schema


class DeepFM(nn.Module):
    """Vectors of `width` numbers for both parts, and layers `hidden` for the deep one."""

    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.linear = LR(schema)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.pairs = InteractionTerm(schema, width, FMPairs(width))
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        return self.linear(batch) + self.pairs(x) + self.net(x)  # type: ignore[no-any-return]
