"""MMCN: a cross network with heads, each with its own way of crossing.

Known from descriptions alone: the features of every layer are cut into segments, called heads, and these may cross
in different ways. Chosen here: a head makes its own segment of the next layer, from the same segment of x_0 and all
of x_l, so that heads meet from layer to layer; the ways are those of DCN, DCNv2 and gated DCN. With heads of one
kind it is that network (for DCN: with a w for each head). The cross network stands beside an MLP, as in these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from models.crosses import Cross, CrossAndDeep, HeadedCross, ScalarCross, gated
from models.layers import Inputs
from models.schema import Schema

HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "scalar": ScalarCross,
    "matrix": lambda into, out: Cross(nn.Linear(into, out)),
    "gated": lambda into, out: Cross(gated(into, out)),
}


class MMCN(nn.Module):
    """`layers` crosses with these `heads`, beside a network with layers `hidden`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        layers: int = 3,
        heads: tuple[Literal["scalar", "matrix", "gated"], ...] = ("scalar", "matrix", "gated"),
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        crosses = [HeadedCross(self.inputs.width, [HEADS[head] for head in heads]) for _ in range(layers)]
        self.net = CrossAndDeep(crosses, self.inputs.width, hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
