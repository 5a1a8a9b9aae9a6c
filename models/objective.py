"""What a ranker minimises, where that is more than the losses of its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

Criterion = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""From (B, T) logits and a batch with `labels` (B, T), NaN where unknown, to one loss a task, (T,)."""


@runtime_checkable
class OwnLoss(Protocol):
    """A ranker with auxiliary outputs or task weights of its own."""

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
        """The loss to minimise, a scalar; `criterion` is how the run measures logits."""


def objective(model: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
    """The ranker's own loss if it has one, else the sum of its tasks' losses."""
    if isinstance(model, OwnLoss):
        return model.loss(batch, criterion)
    return criterion(model(batch), batch).sum()
