"""LR: logistic regression for each label on all codes, all numbers, and the codes in the user's histories."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import FieldEmbedding, Histories, Numbers
from models.schema import Schema


class LR(nn.Module):
    """Two weights for each code and label: where the code describes the row, and where it stands in a history.

    The former are summed over the fields, the latter averaged over the events; numbers enter linearly.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.labels = len(schema.labels)
        self.weights = FieldEmbedding(schema, 2 * self.labels)
        self.histories = Histories(schema, self.labels)
        self.numbers = Numbers(schema)
        self.slopes = nn.Parameter(torch.zeros(len(schema.numbers), self.labels))
        self.bias = nn.Parameter(torch.zeros(self.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        fields, *events = self.weights(batch["fields"], *self.histories.codes(batch))
        row = fields[..., : self.labels].sum(dim=1)
        past = self.histories(batch, [row] * len(events), [event[..., self.labels :] for event in events])
        linear = self.numbers(batch["numbers"]) @ self.slopes + self.bias
        return row + past.unflatten(1, (-1, self.labels)).sum(dim=1) + linear  # type: ignore[no-any-return]
