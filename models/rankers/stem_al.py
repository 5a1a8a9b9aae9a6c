"""STEM-AL: Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024 (arXiv:2403.00793), §5.

STEM with one label that matters. Its tower reads every expert; an auxiliary label's reads its own and the shared
ones, weighs less in the loss, and is cut off before serving. This project's choices: gradients go where STEM's go, so
that the main label's does not reach the experts and tables of the others; and what is added in `models.rankers.stem`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.experts import TableExperts, mix_own_and_shared, mix_reaching
from models.gates import SoftmaxGate
from models.layers import Bank, mlp
from models.objective import Criterion
from models.schema import Schema


class MainTask(nn.Module):
    """All that the main label's score needs: the experts of every table, its gate and its tower."""

    def __init__(
        self, experts: TableExperts, main: int, hidden: tuple[int, ...], tower: tuple[int, ...], gate_dropout: float
    ) -> None:
        super().__init__()
        self.main = main
        self.experts = experts
        self.gate = SoftmaxGate(experts.told, 1, experts.reached.shape[1], gate_dropout)
        self.tower = mlp(hidden[-1], *tower, 1)

    def score(self, told: Float[Tensor, "B T told"], experts: Float[Tensor, "B K D"]) -> Float[Tensor, "B 1"]:
        """From what `experts` gives for a batch."""
        reached = self.experts.reached[self.main : self.main + 1]
        mixed = mix_reaching(self.gate(told[:, self.main]), experts, reached)
        return self.tower(mixed.flatten(1))  # type: ignore[no-any-return]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B 1"]:
        return self.score(*self.experts(batch))


class STEMAL(nn.Module):
    """STEM's hyper-parameters, the label `main` (by default the first), and the weights `alpha` of the losses of the
    others: one for all, or one for each in the order of the labels."""

    weights: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        main: str | None = None,
        alpha: float | tuple[float, ...] = 0.2,
        width: int = 16,
        experts: int = 1,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        at = 0 if main is None else schema.labels.index(main)
        self.main = MainTask(TableExperts(schema, width, experts, hidden, dropout), at, hidden, tower, gate_dropout)
        self.others = [task for task in range(len(schema.labels)) if task != at]
        self.gates = SoftmaxGate(self.main.experts.told, len(self.others), 2 * experts, gate_dropout)
        self.towers = Bank(len(self.others), hidden[-1], *tower, 1)
        weights = torch.ones(len(schema.labels))
        weights[self.others] = torch.tensor(alpha).expand(len(self.others))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        told, experts = self.main.experts(batch)
        by_table = experts.unflatten(1, (-1, self.main.experts.each))
        mixed = mix_own_and_shared(self.gates(told[:, self.others]), by_table[:, self.others], by_table[:, -1])
        before, after = self.towers(mixed).flatten(1).tensor_split([self.main.main], dim=1)
        return torch.cat([before, self.main.score(told, experts), after], dim=1)

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
        """L_main + Σ α_k L_k."""
        return (self.weights * criterion(self(batch), batch)).sum()

    def export(self) -> nn.Module:
        """What scores the main label alone, (B, 1), as it is scored here; it shares its parameters with this."""
        return self.main
