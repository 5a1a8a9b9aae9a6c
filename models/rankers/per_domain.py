"""PerDomain: for each domain a FlatDNN that has seen no other domain's rows.

With FlatDNN, for which the domain is one field among the others, it is the floor that a multi-domain model must beat.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.domains import DomainCross
from models.layers import Bank, Inputs, OtherColumns, field_columns
from models.schema import Schema


class PerDomain(nn.Module):
    """Tables, statistics and a network with layers `hidden` of each domain's own."""

    def __init__(
        self, schema: Schema, *, width: int = 16, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.cross = DomainCross(schema)
        self.inputs = Inputs(self.cross.schema, width, dropout=dropout, by_domain=True)
        self.others = OtherColumns(field_columns(self.cross.schema, width, "domain"), self.inputs.width)
        self.nets = Bank(len(schema.domains), self.others.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.nets.own(self.others(self.inputs(self.cross(batch))), batch["domain"])
