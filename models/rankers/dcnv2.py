"""DCNv2: Wang et al., DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
Systems, WWW 2021 (arXiv:2008.13535).

x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l, beside an MLP (the paper's parallel structure). W is full, of low rank U Vᵀ,
or a mixture of low-rank experts, of which `models.crosses.LowRankExperts` says more. Differs from the paper: one
output for each label, and a standardised input.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.crosses import Cross, CrossAndDeep, LowRankExperts, low_rank
from models.layers import Inputs
from models.schema import Schema


class DCNv2(nn.Module):
    """`layers` crosses beside a network with layers `hidden`.

    W is full where `rank` is None, else of that rank, and a mixture of as many as `experts` where these are several.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        layers: int = 3,
        rank: int | None = None,
        experts: int = 1,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        crosses = [Cross(projection(self.inputs.width, rank, experts)) for _ in range(layers)]
        self.net = CrossAndDeep(crosses, self.inputs.width, hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]


def projection(width: int, rank: int | None, experts: int) -> nn.Module:
    if rank is None:
        if experts > 1:
            raise ValueError("experts are of low rank: give a rank too")
        return nn.Linear(width, width)
    return low_rank(width, width, rank) if experts == 1 else LowRankExperts(width, width, rank, experts)
