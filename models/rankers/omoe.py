"""OMoE: the one-gate mixture of experts of Ma et al., Modeling Task Relationships in Multi-task Learning with
Multi-gate Mixture-of-Experts, KDD 2018, §4.1: MMoE with a gate that all labels share.

Added to the paper: dropout on the gate (`models.gates.SoftmaxGate`) and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.layers import Bank, Inputs, mix
from models.schema import Schema


class OMoE(nn.Module):
    """Experts with layers `hidden`, one gate over them, and a tower with layers `tower` behind it for each label."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        experts: int = 4,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.experts = Bank(experts, self.inputs.width, *hidden, activate_last=True)
        self.gate = SoftmaxGate(self.inputs.width, 1, experts, gate_dropout)
        self.towers = Bank(len(schema.labels), hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        return self.towers(mix(self.gate(x), self.experts(x)).flatten(1)).flatten(1)  # type: ignore[no-any-return]
