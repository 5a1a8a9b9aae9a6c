"""Deep Retrieval: Gao et al., Learning an End-to-End Structure for Retrieval in Large-Scale Recommendations, CIKM
2021.

A path is a code in each of D layers of K nodes, and an item lies on several. Each factor of p(path | x) =
Π_d p(c_d | x, c_1 … c_{d−1}) is a softmax of a network that reads the user's state x and the embeddings of the codes so
far. A softmax over items, trained with it on the same state, orders the items of the paths that are found.

Differs from the paper: x is `models.state`; items are compared with it by cosine.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.layers import mlp
from models.schema import Schema
from models.state import State


class DeepRetrieval(nn.Module):
    """`paths` (items, J, depth) are the codes of each item's paths, -1 where it has fewer; `width` is that of the state
    and of the codes."""

    paths: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        items: int,
        width: int = 32,
        length: int = 20,
        content: int = 0,
        depth: int = 2,
        nodes: int = 32,
        copies: int = 2,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.state = State(schema, width=width, length=length, content=content)
        self.codes = nn.ModuleList(nn.Embedding(nodes, width) for _ in range(depth - 1))
        self.layers = nn.ModuleList(mlp(width * (1 + level), 2 * width, nodes) for level in range(depth))
        self.item_net = nn.Linear(width, width)
        self.register_buffer("paths", torch.randint(nodes, (items, copies, depth)))

    def next_code(self, x: Float[Tensor, "B D"], prefix: Int[Tensor, "B W level"]) -> Float[Tensor, "B W K"]:
        """log p(c | x, prefix) of every code of the layer that follows W prefixes."""
        level = prefix.shape[2]
        so_far = [embed(prefix[:, :, place]) for place, embed in enumerate(self.codes) if place < level]
        state = x[:, None].expand(-1, prefix.shape[1], -1)
        return self.layers[level](torch.cat([state, *so_far], dim=2)).log_softmax(dim=2)  # type: ignore[no-any-return]

    def log_paths(self, x: Float[Tensor, "B D"], paths: Int[Tensor, "B J depth"]) -> Float[Tensor, "B J"]:
        """log p(path | x) of J paths a row."""
        factors = [
            self.next_code(x, paths[:, :, :level]).gather(2, paths[:, :, level, None])[:, :, 0]
            for level in range(paths.shape[2])
        ]
        return torch.stack(factors).sum(dim=0)

    def log_items(self, x: Float[Tensor, "B D"], item: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """log Σ p(path | x) over the paths of each row's item."""
        paths = self.paths[item]
        here: Bool[Tensor, "B J"] = paths[:, :, 0] >= 0
        return self.log_paths(x, paths.clamp(min=0)).masked_fill(~here, -torch.inf).logsumexp(dim=1)

    def likeliest(self, x: Float[Tensor, "B D"], width: int) -> tuple[Int[Tensor, "B W depth"], Float[Tensor, "B W"]]:
        """The likeliest paths, as a beam search of `width` finds them among all, best first, and their log p."""
        paths, scores = x.new_zeros(len(x), 1, 0, dtype=torch.long), x.new_zeros(len(x), 1)
        for _ in self.layers:
            following = (scores[:, :, None] + self.next_code(x, paths)).flatten(1)
            scores, place = following.topk(min(width, following.shape[1]))
            before = (place // self.nodes)[:, :, None].expand(-1, -1, paths.shape[2])
            paths = torch.cat([paths.gather(1, before), (place % self.nodes)[:, :, None]], dim=2)
        return paths, scores

    def user_vectors(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return functional.normalize(x)

    def item_vectors(self, codes: Int[Tensor, "N F"], content: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        return functional.normalize(self.item_net(self.state.items(codes, content)))
