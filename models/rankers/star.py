"""STAR: Sheng et al., One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction,
CIKM 2021 (arXiv:2101.11427).

A layer's weights are W_p ⊙ W and b_p + b for domain p, behind a normalisation partitioned by domain, and the logit
of a small auxiliary network is added. Differs from the paper: batches mix domains, so rows are sorted by domain; a
domain with a single row in a batch is normalised with the running statistics. The input is standardised over all
domains first, as in the other rankers here: the partitioned normalisation undoes it, and the auxiliary network needs
it. The domain's own embedding goes to the auxiliary network alone: within a domain it is constant, and a constant
divided by its deviation is noise.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.domains import PartitionedNorm, StarLinear
from models.grouped import grouping, ungrouped
from models.layers import Inputs, OtherColumns, field_columns, mlp
from models.schema import Schema


class STAR(nn.Module):
    """Layers `hidden` for each domain; `auxiliary` is the hidden size of the auxiliary network."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        auxiliary: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        domains, labels = len(schema.domains), len(schema.labels)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.others = OtherColumns(field_columns(schema, width, "domain"), self.inputs.width)
        self.normalise = PartitionedNorm(domains, self.others.width)
        self.layers = nn.ModuleList(
            StarLinear(domains, into, out) for into, out in pairwise((self.others.width, *hidden, labels))
        )
        self.domain = nn.Embedding(domains, width)
        self.auxiliary = mlp(width + self.inputs.width, auxiliary, labels)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        domain = batch["domain"]
        x = self.inputs(batch)
        auxiliary = self.auxiliary(torch.cat([self.domain(domain), x], dim=1))
        return self.star(self.normalise(self.others(x), domain), domain) + auxiliary  # type: ignore[no-any-return]

    def star(self, x: Float[Tensor, "B D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B T"]:
        """The network of each row's own domain."""
        order, count = grouping(domain, len(self.domain.weight))
        x = x.index_select(0, order)
        for layer in self.layers[:-1]:
            x = layer(x, count).relu()
        return ungrouped(self.layers[-1](x, count), order)
