"""GBDT+LR: He et al., Practical Lessons from Predicting Clicks on Facebook, ADKDD 2014.

The leaves that a row falls into, one in each of many boosted trees, are the one-hot input of a logistic regression.
`pipeline.ranking.trees` grows the trees, for one label, and the regression has all labels; before that they are
random. Differs from the paper: the regression also has the codes, numbers and histories that `LR` has, most of which
no tree can split on, and it is trained on the rows the trees were grown on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.rankers.lr import LR
from models.schema import Schema

MOST_CODES = 255


class Trees(nn.Module):
    """Binary trees with at most `leaves` leaves, none deeper than `depth`.

    A row at node i of tree t goes on to `branches[t, i, 1]` where its column `column[t, i]` is above
    `threshold[t, i]`, else to `branches[t, i, 0]`. Node 0 is the root; the first `leaves - 1` nodes are splits and
    the others leaves, which lead to themselves. Random at first: balanced, with thresholds between `low` and `high`.
    """

    column: Tensor
    threshold: Tensor
    branches: Tensor

    def __init__(
        self, low: Float[Tensor, " C"], high: Float[Tensor, " C"], trees: int, leaves: int, depth: int
    ) -> None:
        super().__init__()
        if leaves > 2**depth:
            raise ValueError(f"a tree of depth {depth} has at most {2**depth} leaves, not {leaves}")
        self.leaves = leaves
        self.depth = depth
        node = torch.arange(2 * leaves - 1)[:, None]
        branches = torch.where(node < leaves - 1, 2 * node + torch.tensor([1, 2]), node)
        column = torch.randint(len(low), (trees, len(node)))
        self.register_buffer("column", column)
        self.register_buffer("threshold", torch.lerp(low[column], high[column], torch.rand(column.shape)))
        self.register_buffer("branches", branches.repeat(trees, 1, 1))

    def forward(self, x: Float[Tensor, "B C"]) -> Int[Tensor, "B trees"]:
        """The number of each row's leaf, from 0, in every tree."""
        tree = torch.arange(len(self.column), device=x.device)
        node = torch.zeros(len(x), len(tree), dtype=torch.long, device=x.device)
        for _ in range(self.depth):
            right = x.gather(1, self.column[tree, node]) > self.threshold[tree, node]
            node = self.branches[tree, node, right.long()]
        return node - (self.leaves - 1)


class GBDTLR(nn.Module):
    """`trees` trees with `leaves` leaves and of `depth`, and LR on these leaves and on all that LR knows.

    The trees read the domain, the numbers, and the codes, as integers, of those fields that have so few that
    LightGBM's histograms keep them apart.
    """

    offsets: Tensor

    def __init__(self, schema: Schema, *, trees: int = 100, leaves: int = 12, depth: int = 6) -> None:
        super().__init__()
        self.coded = [i for i, field in enumerate(schema.fields) if field.size <= MOST_CODES]
        self.register_buffer("offsets", torch.tensor([schema.offsets[i] for i in self.coded], dtype=torch.long))
        ranges = [
            (0.0, len(schema.domains) - 1.0),
            *((number.mean - number.std, number.mean + number.std) for number in schema.numbers),
            *((0.0, schema.fields[i].size - 1.0) for i in self.coded),
        ]
        low, high = torch.tensor(ranges).T
        self.trees = Trees(low, high, trees, leaves, depth)
        self.weights = nn.Parameter(torch.zeros(trees, leaves, len(schema.labels)))
        self.lr = LR(schema)

    def columns(self, batch: dict[str, Tensor]) -> Float[Tensor, "B C"]:
        """What the trees split on."""
        codes = batch["fields"][:, self.coded] - self.offsets
        return torch.cat([batch["domain"][:, None], batch["numbers"], codes], dim=1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        trees, leaves, _ = self.weights.shape
        leaf = self.trees(self.columns(batch)) + leaves * torch.arange(trees, device=self.weights.device)
        of_leaves = functional.embedding_bag(leaf, self.weights.flatten(0, 1), mode="sum")
        return of_leaves + self.lr(batch)  # type: ignore[no-any-return]
