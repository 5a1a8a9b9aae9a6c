"""The two sides of a model whose score is a dot product: a user's tower never sees the item, nor an item's the user."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Bank, FieldEmbedding, Histories, Numbers, as_index, mlp, pick
from models.schema import Role, Schema


class UserTower(nn.Module):
    """User fields, domain, averaged histories and the numbers of the given roles → a vector.

    The last layer is the domain's own, so that one user may look for different things in different places.
    """

    def __init__(
        self, schema: Schema, width: int, hidden: tuple[int, ...], out: int, numbers: tuple[Role, ...] = ()
    ) -> None:
        super().__init__()
        domains = len(schema.domains)
        columns = schema.positions("user")
        self.columns = as_index(columns)
        self.domain = nn.Embedding(domains, width)
        self.histories = Histories(schema, width)
        self.numbers = Numbers(schema, schema.number_positions(*numbers))
        into = width * (len(columns) + 1) + self.histories.width + len(self.numbers.columns)
        self.net = nn.Sequential(mlp(into, *hidden), nn.ReLU())
        self.heads = Bank(domains, hidden[-1], out)

    def forward(self, batch: dict[str, Tensor], embed: FieldEmbedding) -> Float[Tensor, "B out"]:
        user, *events = embed(batch["fields"][:, self.columns], *self.histories.codes(batch))
        user = user.flatten(1)
        histories = self.histories(batch, [user] * len(events), events)
        parts = [user, self.domain(batch["domain"]), histories, self.numbers(batch["numbers"])]
        return pick(self.heads(self.net(torch.cat(parts, dim=1))), batch["domain"])


class ItemTower(nn.Module):
    """Item fields, the numbers of the given roles and, if `content` > 0, `batch["content"]` (B, content) → a vector."""

    def __init__(
        self,
        schema: Schema,
        width: int,
        hidden: tuple[int, ...],
        out: int,
        content: int,
        numbers: tuple[Role, ...] = (),
    ) -> None:
        super().__init__()
        columns = schema.positions("item")
        self.columns = as_index(columns)
        self.numbers = Numbers(schema, schema.number_positions(*numbers))
        self.content = content
        self.net = mlp(width * len(columns) + len(self.numbers.columns) + content, *hidden, out)

    def forward(self, batch: dict[str, Tensor], embed: FieldEmbedding) -> Float[Tensor, "B out"]:
        (item,) = embed(batch["fields"][:, self.columns])
        parts = [item.flatten(1), self.numbers(batch["numbers"])]
        if self.content:
            parts.append(batch["content"])
        return self.net(torch.cat(parts, dim=1))  # type: ignore[no-any-return]
