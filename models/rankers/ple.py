"""PLE: Tang et al., Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations, RecSys 2020, §4.2.

Levels of CGC; below the top, a gate over all experts feeds the shared ones of the next. Differs from the paper: all
levels have the same numbers of experts and layers. Added to it: dropout on the gates (`models.gates.SoftmaxGate`) and
a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.experts import extraction
from models.layers import Bank, Inputs
from models.schema import Schema


class PLE(nn.Module):
    """`levels` of `own` experts for each label and `shared` ones for all, with layers `hidden` each, and a tower with
    layers `tower` for each label."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        levels: int = 2,
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
        self.levels = extraction(levels, self.inputs.width, tasks, own, shared, hidden, gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.towers(self.levels(self.inputs(batch))).flatten(1)  # type: ignore[no-any-return]
