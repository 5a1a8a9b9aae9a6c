"""DCN: Wang et al., Deep & Cross Network for Ad Click Predictions, ADKDD 2017 (arXiv:1708.05123).

x_{l+1} = x_0 (x_lᵀ w_l) + b_l + x_l, beside an MLP. Differs from the paper: one output for each label, and no batch
normalisation but a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.crosses import CrossAndDeep, ScalarCross
from models.layers import Inputs
from models.schema import Schema


class DCN(nn.Module):
    """`layers` crosses beside a network with layers `hidden`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        layers: int = 3,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        crosses = [ScalarCross(self.inputs.width, self.inputs.width) for _ in range(layers)]
        self.net = CrossAndDeep(crosses, self.inputs.width, hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
