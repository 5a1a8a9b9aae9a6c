"""TIM: Zhou et al., Temporal Interest Network for User Response Prediction, WWW 2024 (arXiv:2308.08487).

FlatDNN whose histories are met by the candidate twice: in the weight of an event and in what the event gives, both
with the time elapsed (`models.sequences.TemporalInterest`). Differs from the paper: one attention head without
projections, and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.schema import Schema
from models.sequences import TemporalInterest


class TIM(nn.Module):
    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=TemporalInterest)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
