"""Gated DCN: Wang et al., Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction, CIKM 2023
(arXiv:2311.04635), with the parallel structure (GDCN-P).

x_{l+1} = x_l + x_0 ⊙ (W_l x_l + b_l) ⊙ σ(V_l x_l + c_l), beside an MLP. Differs from the paper: the gate has a bias,
embeddings are of one width, there is one output for each label, and the input is standardised.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.crosses import Cross, CrossAndDeep, gated
from models.layers import Inputs
from models.schema import Schema


class GatedDCN(nn.Module):
    """`layers` gated crosses beside a network with layers `hidden`."""

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
        crosses = [Cross(gated(self.inputs.width, self.inputs.width)) for _ in range(layers)]
        self.net = CrossAndDeep(crosses, self.inputs.width, hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
