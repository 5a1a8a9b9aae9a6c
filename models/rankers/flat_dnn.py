"""FlatDNN: the plain network that every other model must beat.

It is blind to domains but for the field `domain`, one among the others; histories are averaged.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.schema import Schema


class FlatDNN(nn.Module):
    """All inputs next to each other, one network, one output for each label."""

    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
