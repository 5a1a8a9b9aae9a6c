"""DIEN: Zhou et al., Deep Interest Evolution Network for Click-Through Rate Prediction, AAAI 2019 (arXiv:1809.03672).

FlatDNN whose histories are read by two recurrent layers (`models.recurrent.InterestEvolution`). Differs from the
paper: the negatives of the auxiliary loss are other events of the batch, so drawn in proportion to how often an item
is used; the outer network has ReLU and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.objective import Criterion
from models.recurrent import InterestEvolution
from models.schema import Schema


class DIEN(nn.Module):
    """`auxiliary` is the weight of the loss with which each interest is to foretell the next event."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        auxiliary: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=InterestEvolution)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
        x, next_event = self.inputs.with_loss(batch)
        return criterion(self.net(x), batch).sum() + self.auxiliary * next_event
