"""The two-tower of recall: Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
RecSys 2019.

Numbers are left out: what retrieves must hold for the whole life of an index. Differs from the paper: the last layer
of the user's tower belongs to the domain.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.layers import FieldEmbedding
from models.schema import Schema
from models.towers import ItemTower, UserTower


class TwoTower(nn.Module):
    """Users and items as unit vectors of `width` numbers; `content` is the size of the items' content vectors."""

    def __init__(self, schema: Schema, *, width: int = 32, hidden: tuple[int, ...] = (128,), content: int = 0) -> None:
        super().__init__()
        self.embed = FieldEmbedding(schema, width)
        self.user_tower = UserTower(schema, width, hidden, width)
        self.item_tower = ItemTower(schema, width, hidden, width, content)

    def user(self, batch: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """The rows' users, each in the row's domain."""
        return normalize(self.user_tower(batch, self.embed))

    def item(self, batch: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """The rows' items; needs `fields` and `numbers`, and `content` if there is any."""
        return normalize(self.item_tower(batch, self.embed))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, " B"]:
        """Cosine of each row's user and item."""
        return (self.user(batch) * self.item(batch)).sum(dim=1)
