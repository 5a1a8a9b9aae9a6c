"""PPNet: the half of PEPNet that gates parameters (Chang et al., Parameter and Embedding Personalized Network for
Infusing with Personalized Prior Information, KDD 2023, §3.2), on an input that no gate has touched.

What differs from the paper is told at `models.rankers.pepnet`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import GatedTowers
from models.layers import Inputs, field_columns
from models.schema import Schema


class PPNet(nn.Module):
    """The hyper-parameters are PEPNet's."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (64, 32),
        gate: int = 32,
        prior: tuple[str, ...] = ("user_id", "item_id", "author_id"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.prior = field_columns(schema, width, *prior)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.towers = GatedTowers(
            len(schema.labels), self.inputs.width, len(self.prior) + self.inputs.width, hidden, gate
        )

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        return self.towers(x, x[:, self.prior], x.detach())  # type: ignore[no-any-return]
