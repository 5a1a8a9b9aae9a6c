"""Generative retrieval: Rajput et al., Recommender Systems with Generative Retrieval (TIGER), NeurIPS 2023.

An item is its semantic id, a code in each of a few levels. A history is the ids of its items, and a decoder that
attends to it says, code by code, the id of what comes next (§3.2). Nothing is learnt by item: items whose ids begin
alike share what is learnt, and a new item has an id as soon as it has content.

Differs from the paper: an event is one token, the sum of its codes' embeddings; the codes so far are the decoder's
query in the same way, so that it needs no attention among them; the history has no encoder, and the user no token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.layers import mlp


class Attention(nn.Module):
    """W queries a row look at the row's history, then pass a small network; both add to the query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not fall into {heads} heads")
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.of_query = nn.Linear(width, width)
        self.of_history = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.net = mlp(width, 2 * width, width)

    def forward(
        self, query: Float[Tensor, "B W D"], history: Float[Tensor, "B L D"], there: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B W D"]:
        asked, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.of_query(self.norms[0](query)), *self.of_history(history).chunk(2, dim=2))
        )
        seen = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=there[:, None, None])
        query = query + self.out(seen.transpose(1, 2).flatten(2))
        return query + self.net(self.norms[1](query))  # type: ignore[no-any-return]


class SemanticDecoder(nn.Module):
    """`sizes` are the numbers of codes of the levels, `length` how many events are read, newest first."""

    def __init__(
        self,
        sizes: Sequence[int],
        domains: int,
        *,
        width: int = 64,
        length: int = 20,
        heads: int = 4,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.said = nn.ModuleList(nn.Embedding(size, width) for size in sizes[:-1])
        self.domain = nn.Embedding(1 + domains, width)
        self.back = nn.Embedding(length, width)
        self.level = nn.Embedding(len(sizes), width)
        self.history_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)

    def history(
        self, events: Int[Tensor, "B L levels"], there: Bool[Tensor, "B L"], domain: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B tokens D"], Bool[Tensor, "B tokens"]]:
        """The tokens to attend to, and which of them there are: the domain (from 1, 0 if unknown), then the events."""
        of_codes = [embed(events[:, :, level]) for level, embed in enumerate(self.codes)]
        of_events = torch.stack(of_codes).sum(dim=0) + self.back.weight
        tokens = torch.cat([self.domain(domain)[:, None], of_events], dim=1)
        return self.history_norm(tokens), functional.pad(there, (1, 0), value=True)

    def next_code(
        self,
        history: Float[Tensor, "B tokens D"],
        there: Bool[Tensor, "B tokens"],
        prefix: Int[Tensor, "B W level"],
    ) -> Float[Tensor, "B W K"]:
        """log p(c | history, prefix) of every code of the level that follows W prefixes."""
        level = prefix.shape[2]
        query = history[:, :1] + self.level.weight[level]
        for place in range(level):
            query = query + self.said[place](prefix[:, :, place])
        decoded = self.decode(query.expand(-1, prefix.shape[1], -1), history, there)
        return self.heads[level](decoded).log_softmax(dim=2)  # type: ignore[no-any-return]

    def log_items(
        self,
        history: Float[Tensor, "B tokens D"],
        there: Bool[Tensor, "B tokens"],
        codes: Int[Tensor, "B levels"],
    ) -> Float[Tensor, " B"]:
        """log p of each row's item, of which `codes` is the id: all levels at once, each after the codes before it."""
        said = [embed(codes[:, level]) for level, embed in enumerate(self.said)]
        so_far = torch.stack([torch.zeros_like(history[:, 0]), *said], dim=1).cumsum(dim=1)
        decoded = self.decode(history[:, :1] + self.level.weight + so_far, history, there)
        shares = [head(decoded[:, level]).log_softmax(dim=1) for level, head in enumerate(self.heads)]
        factors = [share.gather(1, codes[:, level, None])[:, 0] for level, share in enumerate(shares)]
        return torch.stack(factors).sum(dim=0)

    def decode(
        self, query: Float[Tensor, "B W D"], history: Float[Tensor, "B tokens D"], there: Bool[Tensor, "B tokens"]
    ) -> Float[Tensor, "B W D"]:
        """What W queries a row become; they do not see each other."""
        for block in self.blocks:
            query = block(query, history, there)
        return self.norm(query)  # type: ignore[no-any-return]
