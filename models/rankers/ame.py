"""AME: asymmetric multi-embedding, Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024
(arXiv:2403.00793), §5.

A few tables of different widths serve any number of labels. Labels are put in buckets by how much data they have, one
bucket a table; a bucket's gate mixes the tables' experts row by row. This project's choices: buckets have equal numbers
of labels; a gate begins with a liking for its own table, which training may take away; gradients go wherever the gate
does; dropout on the gates (`models.gates.SoftmaxGate`) and a standardised input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.layers import Bank, Inputs, Tables, mix, mlp
from models.schema import Schema


def buckets(data: Sequence[float], count: int) -> list[int]:
    """For each task its bucket in 0 … count − 1: of equal size, and the more data the higher; of equals, the first
    counts as having more."""
    falling = sorted(range(len(data)), key=lambda task: -data[task])
    return [count - 1 - falling.index(task) * count // len(data) for task in range(len(data))]


class AME(nn.Module):
    """Tables of `widths`, from narrow to wide, with an expert of layers `hidden` each; a tower with layers `tower` for
    each label.

    `tasks_data` is how much data each label has, such as its share of positives; without it the labels count as
    ordered from most to least. `liking` is what a gate's own table is ahead by, in logits, before training.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        widths: tuple[int, ...] = (8, 16, 32),
        tasks_data: tuple[float, ...] | None = None,
        liking: float = 1.0,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        tasks = len(schema.labels)
        if tasks_data is not None and len(tasks_data) != tasks:
            raise ValueError(f"tasks_data has {len(tasks_data)} numbers for {tasks} labels")
        bucket = buckets(tasks_data or [0.0] * tasks, len(widths))
        filled = sorted(set(bucket))
        self.gate = [filled.index(table) for table in bucket]
        self.inputs = Inputs(schema, sum(widths), dropout=dropout)
        self.tables = Tables(schema, widths)
        self.experts = nn.ModuleList(nn.Sequential(mlp(size, *hidden), nn.ReLU()) for size in self.tables.sizes)
        self.gates = SoftmaxGate(self.inputs.width, len(filled), len(widths), gate_dropout)
        self.gates.score.bias.data[range(len(filled)), filled] += liking
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        experts = [expert(row) for expert, row in zip(self.experts, self.tables(x), strict=True)]
        mixed = mix(self.gates(x), torch.stack(experts, dim=1))
        return self.towers(mixed[:, self.gate]).flatten(1)  # type: ignore[no-any-return]
