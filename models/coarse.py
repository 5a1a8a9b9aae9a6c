"""The coarse ranker: two towers with numbers but no cross features, so that item vectors can be computed ahead.

The vector-product form of pre-ranking (Wang et al., COLD, DLP-KDD 2020, §2.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import FieldEmbedding
from models.schema import Schema
from models.towers import ItemTower, UserTower


class Coarse(nn.Module):
    """Vectors of `width` + 1 numbers, whose dot product is the score: the item's last one is its bias, the user's 1.

    `content` is the size of the items' content vectors.
    """

    def __init__(self, schema: Schema, *, width: int = 32, hidden: tuple[int, ...] = (128,), content: int = 0) -> None:
        super().__init__()
        self.embed = FieldEmbedding(schema, width)
        self.user_tower = UserTower(schema, width, hidden, width, ("user", "context"))
        self.item_tower = ItemTower(schema, width, hidden, width + 1, content, ("item",))

    def user(self, batch: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """The rows' users, each in the row's domain and context."""
        vector = self.user_tower(batch, self.embed)
        return torch.cat([vector, torch.ones_like(vector[:, :1])], dim=1)

    def item(self, batch: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """The rows' items; needs `fields` and `numbers`, and `content` if there is any."""
        return self.item_tower(batch, self.embed)  # type: ignore[no-any-return]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, " B"]:
        """Logit of each row's item for its user."""
        return (self.user(batch) * self.item(batch)).sum(dim=1)
