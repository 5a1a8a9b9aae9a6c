"""STEM-Net: Su et al., STEM: Unleashing the Power of Embeddings for Multi-task Recommendation, AAAI 2024
(arXiv:2308.13537).

All-forward task-specific-backward gates: a label's tower reads every expert, but its gradient reaches only the
experts, and through them the tables, that are its own or shared. Added to the paper: histories and numbers, which all
tables' experts see, dropout on the gates (`models.gates.SoftmaxGate`) and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.experts import TableExperts, mix_reaching
from models.gates import SoftmaxGate
from models.layers import Bank
from models.schema import Schema


class STEM(nn.Module):
    """Tables of `width` for each label and for all, `experts` with layers `hidden` for each table, a gate over all of
    them for each label, and a tower with layers `tower` behind it."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        experts: int = 1,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.experts = TableExperts(schema, width, experts, hidden, dropout)
        tasks, all_experts = self.experts.reached.shape
        self.gates = SoftmaxGate(self.experts.told, tasks, all_experts, gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        told, experts = self.experts(batch)
        mixed = mix_reaching(self.gates(told), experts, self.experts.reached)
        return self.towers(mixed).flatten(1)  # type: ignore[no-any-return]
