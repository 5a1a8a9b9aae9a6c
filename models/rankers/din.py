"""DIN: Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018 (arXiv:1706.06978).

FlatDNN whose histories are weighted by how they bear on the candidate. What differs from the paper is told at
`models.sequences.Comparison`; the outer network has ReLU and a standardised input.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, Standardise, mlp
from models.schema import Schema
from models.sequences import ActivationUnit, PReLU


class Dice(nn.Module):
    """p ⊙ x + α ⊙ (1 − p) ⊙ x with p = σ of the standardised x (§5.2), so that the bend is where the data are.

    In training the statistics are those of the batch's events.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(1, width)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
        p = self.standardise(x, torch.zeros_like(x[:, 0], dtype=torch.long)).sigmoid()
        return (p + self.alpha * (1 - p)) * x  # type: ignore[no-any-return]


ACTIVATIONS = {"prelu": lambda hidden: PReLU(), "dice": Dice}


class DIN(nn.Module):
    """`attention` is the hidden size of the activation unit, `activation` what stands behind its hidden layer."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        attention: int = 32,
        activation: Literal["prelu", "dice"] = "prelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        unit = partial(ActivationUnit, hidden=attention, activation=ACTIVATIONS[activation])
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=unit)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
