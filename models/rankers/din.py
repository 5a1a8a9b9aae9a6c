"""DIN: Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018 (arXiv:1706.06978).

FlatDNN whose histories are weighted by how they bear on the candidate. What differs from the paper is told at
`models.sequences.ActivationUnit`; the outer network has ReLU and a standardised
input.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.schema import Schema
from models.sequences import ActivationUnit


class DIN(nn.Module):
    """`attention` is the hidden size of the activation unit."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        attention: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=partial(ActivationUnit, hidden=attention))
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
