"""MIMN: Pi et al., Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction, KDD 2019
(arXiv:1905.09248).

FlatDNN whose histories are written to a few memory slots and read by the candidate (`models.recurrent.InterestMemory`,
whose `memory` a service can compute ahead of the request). Differs from the paper: there is no memory induction unit,
and the input is standardised.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.objective import Criterion
from models.recurrent import InterestMemory
from models.schema import Schema


class MIMN(nn.Module):
    """`slots` of memory for each sequence; `utilisation` is the weight of the loss that has them used evenly, and 0
    leaves the balancing of writes out; `attention` is the hidden size of the unit that reads."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        slots: int = 4,
        utilisation: float = 0.1,
        attention: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.utilisation = utilisation
        memory = partial(InterestMemory, slots=slots, hidden=attention, balance=utilisation > 0)
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=memory)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
        x, uneven = self.inputs.with_loss(batch)
        return criterion(self.net(x), batch).sum() + self.utilisation * uneven
