"""MMoE: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.

Added to the paper: dropout on the gates (`models.gates.SoftmaxGate`) and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.layers import Bank, Inputs, mix
from models.schema import Schema


class MMoE(nn.Module):
    """Experts with layers `hidden`, one gate over them for each label, and a tower with layers `tower` behind it."""

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
        tasks = len(schema.labels)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.experts = Bank(experts, self.inputs.width, *hidden, activate_last=True)
        self.gates = SoftmaxGate(self.inputs.width, tasks, experts, gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        return self.towers(mix(self.gates(x), self.experts(x))).flatten(1)  # type: ignore[no-any-return]
