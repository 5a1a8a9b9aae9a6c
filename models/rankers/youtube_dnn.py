"""YouTubeDNN: Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016, §4 (the ranking model).

Pooled histories, and each number normalised to [0, 1] by its cumulative distribution and given as x̃, x̃² and √x̃.
Differs from the paper: the distribution is taken to be normal, of which the schema has the mean and the deviation;
the last layer has a logit for each label in place of the weighted logistic regression on watch time.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.schema import Schema
from models.sequences import Pooling


class YouTubeDNN(nn.Module):
    """`pooling` is how a history's events become one vector: their `mean` or their `sum`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        pooling: Literal["mean", "sum"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=partial(Pooling, pooling=pooling))
        self.embedded = self.inputs.width - len(schema.numbers)
        self.net = mlp(self.embedded + 3 * len(schema.numbers), *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        embedded = self.inputs(batch)[:, : self.embedded]
        numbers = torch.special.ndtr(self.inputs.numbers(batch["numbers"]))
        return self.net(torch.cat([embedded, numbers, numbers.square(), numbers.sqrt()], dim=1))  # type: ignore[no-any-return]
