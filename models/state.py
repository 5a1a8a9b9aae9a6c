"""What a user is after, read off the history itself: where the routes `deep_retrieval` and `policy` start from.

A batch of B rows is a dictionary of tensors:

* `user` (B, U): rows of the fused table, the user's fields;
* `events` (B, L, F): rows of the fused table, the item fields of the last L events, newest first;
* `content` (B, L, C): the events' content vectors, C = 0 where there are none;
* `there` (B, L): which of the events there are;
* `domain` (B,): from 1, 0 where it is unknown.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layers import FieldEmbedding, mlp
from models.schema import Schema


class ItemVectors(nn.Module):
    """Items as the sum of their fields' embeddings and a linear map of their content vectors (C numbers, or 0)."""

    def __init__(self, schema: Schema, *, width: int, content: int = 0) -> None:
        super().__init__()
        self.embed = FieldEmbedding(schema, width)
        self.content = nn.Linear(content, width, bias=False) if content else None

    def forward(self, codes: Int[Tensor, "N F"], content: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        (fields,) = self.embed(codes)
        vectors: Tensor = fields.sum(dim=1)
        return vectors if self.content is None else vectors + self.content(content)


class State(nn.Module):
    """User fields, the domain and the last `length` events as `width` numbers.

    Events are averaged twice, alike and by weights that are learnt for how far back they lie.
    """

    def __init__(
        self, schema: Schema, *, width: int, length: int, content: int = 0, hidden: tuple[int, ...] = (128,)
    ) -> None:
        super().__init__()
        self.items = ItemVectors(schema, width=width, content=content)
        self.domain = nn.Embedding(1 + len(schema.domains), width)
        self.recency = nn.Parameter(torch.zeros(length))
        self.net = mlp(width * (len(schema.positions("user")) + 3), *hidden, width)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        there, events = batch["there"], batch["events"]
        (user,) = self.items.embed(batch["user"])
        vectors = self.items(events.flatten(0, 1), batch["content"].flatten(0, 1)).unflatten(0, there.shape)
        alike = there.float()
        weighted = alike * self.recency.exp()
        parts = [user.flatten(1), self.domain(batch["domain"])]
        for weights in (alike, weighted):
            shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
            parts.append(torch.einsum("bl,bld->bd", shares, vectors))
        return self.net(torch.cat(parts, dim=1))  # type: ignore[no-any-return]
