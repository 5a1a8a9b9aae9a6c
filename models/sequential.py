"""Towers that read a user's history alone, one event after the other, and give a vector for what comes next.

A tower is any module called with

* `item` (B, L): item numbers, oldest first, 0 after the last of a row;
* `time` (B, L + 1): minutes; `time[:, i]` is when event i happened, and when what comes after event i - 1 is asked for;

that returns (B, L, K, D): after each event the K vectors of what the user wants then. They depend on the events up to
it, and on when they are asked for, so that all events of a history are trained on at once. `item_vectors()` (items, D)
are those that they are multiplied with; row 0 belongs to no item. `start(vectors)` (items, D) adds to what items are at
first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.layers import mlp

STD = 0.02
GAPS = 20


class MeanPooled(nn.Module):
    """The mean of the events so far, through a plain network, against a table of its own (Covington et al., Deep Neural
    Networks for YouTube Recommendations, RecSys 2016, §3). Differs from the paper in that it reads the history only.
    """

    def __init__(self, items: int, *, width: int = 64, hidden: tuple[int, ...] = (128,), dropout: float = 0.2) -> None:
        super().__init__()
        self.embed = _table(items, width)
        self.output = _table(items, width)
        self.dropout = nn.Dropout(dropout)
        self.net = mlp(width, *hidden, width)

    def forward(
        self,
        item: Int[Tensor, "B L"],
        time: Int[Tensor, "B L+1"],  # noqa: ARG002
    ) -> Float[Tensor, "B L 1 D"]:
        events = self.dropout(self.embed(item))
        count = torch.arange(1, item.shape[1] + 1, device=item.device)[:, None]
        return self.net(events.cumsum(dim=1) / count)[:, :, None]  # type: ignore[no-any-return]

    def item_vectors(self) -> Float[Tensor, "items D"]:
        return self.output.weight

    def start(self, vectors: Float[Tensor, "items D"]) -> None:
        _add(vectors, self.embed, self.output)


class MultiInterest(nn.Module):
    """K interests, each a mean of the events so far weighted by an attention of its own (ComiRec-SA: Cen et al.,
    Controllable Multi-Interest Framework for Recommendation, KDD 2020, §3.2):

        V = softmax(W₂ tanh(W₁ Hᵀ)) H

    Differs from the paper in that attention decays with how far an event lies back, at a rate learnt for each interest,
    where positions were added to the events.
    """

    def __init__(self, items: int, *, width: int = 64, interests: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.embed = _table(items, width)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, interests, bias=False))
        self.decay = nn.Parameter(torch.linspace(-3.0, 0.0, interests))

    def forward(
        self,
        item: Int[Tensor, "B L"],
        time: Int[Tensor, "B L+1"],  # noqa: ARG002
    ) -> Float[Tensor, "B L K D"]:
        events = self.dropout(self.embed(item))
        place = torch.arange(item.shape[1], device=item.device)
        back = (place[:, None] - place).clamp(min=0)
        score = self.score(events).transpose(1, 2)[:, :, None] - functional.softplus(self.decay)[:, None, None] * back
        weight = score.masked_fill(place > place[:, None], -torch.inf).softmax(dim=3)
        return torch.einsum("bkij,bjd->bikd", weight, events)

    def item_vectors(self) -> Float[Tensor, "items D"]:
        return self.embed.weight

    def start(self, vectors: Float[Tensor, "items D"]) -> None:
        _add(vectors, self.embed)


class SelfAttentive(nn.Module):
    """Self-attention over the events so far (SASRec: Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM
    2018), the items' one table on both sides.

    Differs from the paper in that attention knows how many events and how much time lie between, by a bias for each
    (as in HSTU: Zhai et al., Actions Speak Louder than Words, ICML 2024), where positions were added to the events.
    """

    def __init__(
        self, items: int, *, width: int = 64, length: int = 50, layers: int = 2, heads: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")
        self.embed = _table(items, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, length, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, item: Int[Tensor, "B L"], time: Int[Tensor, "B L+1"]) -> Float[Tensor, "B L 1 D"]:
        place = torch.arange(item.shape[1], device=item.device)
        back = place[:, None] - place
        gap = torch.log2(1 + (time[:, 1:, None] - time[:, None, :-1]).clamp(min=0).float()).long().clamp(max=GAPS - 1)
        x = self.dropout(self.embed(item))
        for block in self.blocks:
            x = block(x, back, gap)
        return self.norm(x)[:, :, None]  # type: ignore[no-any-return]

    def item_vectors(self) -> Float[Tensor, "items D"]:
        return self.embed.weight

    def start(self, vectors: Float[Tensor, "items D"]) -> None:
        _add(vectors, self.embed)


class _Block(nn.Module):
    """Attention and a plain network of two layers, each normalised before and added to what it read."""

    def __init__(self, width: int, length: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.place = nn.Embedding(length, heads)
        self.gap = nn.Embedding(GAPS, heads)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.gap.weight)

    def forward(
        self, x: Float[Tensor, "B L D"], back: Int[Tensor, "L L"], gap: Int[Tensor, "B L L"]
    ) -> Float[Tensor, "B L D"]:
        q, k, v = self.qkv(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        near = self.place(back.clamp(0, self.place.num_embeddings - 1)) + self.gap(gap)
        score = q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + near.permute(0, 3, 1, 2)
        weight = self.dropout(score.masked_fill(back < 0, -torch.inf).softmax(dim=3))
        x = x + self.dropout(self.out((weight @ v).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.net(self.between(x)))  # type: ignore[no-any-return]


def _table(items: int, width: int) -> nn.Embedding:
    table = nn.Embedding(items, width, padding_idx=0)
    nn.init.normal_(table.weight[1:], std=STD)
    return table


@torch.no_grad()
def _add(vectors: Tensor, *tables: nn.Embedding) -> None:
    for table in tables:
        table.weight[1:] += vectors[1:]


HistoryTower = MeanPooled | MultiInterest | SelfAttentive
