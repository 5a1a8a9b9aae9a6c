"""CGC: customised gate control, the single level of Tang et al., Progressive Layered Extraction (PLE): A Novel
Multi-Task Learning Model for Personalized Recommendations, RecSys 2020, §4.1.

Added to the paper: dropout on the gates (`models.gates.SoftmaxGate`) and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.experts import Extraction
from models.layers import Bank, Inputs
from models.schema import Schema


class CGC(nn.Module):
    """`own` experts for each label and `shared` ones for all, with layers `hidden`; a gate for each label over its own
    and the shared ones, and a tower with layers `tower` behind it."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        own: int = 1,
        shared: int = 2,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        tasks = len(schema.labels)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.extraction = Extraction(self.inputs.width, tasks, own, shared, hidden, gate_dropout, top=True)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.towers(self.extraction(self.inputs(batch))).flatten(1)  # type: ignore[no-any-return]
