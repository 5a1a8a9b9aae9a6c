"""Multi-embedding: Guo et al., On the Embedding Collapse when Scaling Up Recommendation Models, ICML 2024
(arXiv:2310.04400), §5; with gates as in Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024.

Several narrow tables, each with an interaction of its own and ReLU behind it, instead of one wide table. The tables
are looked up as one. The interaction is IPNN's: inner products of all pairs of vectors next to the vectors; the numbers
stand beside them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.interactions import InnerProducts
from models.layers import Bank, FieldVectors, Inputs, mix
from models.schema import Schema


class MultiEmbedding(nn.Module):
    """`tables` tables of `width`, each with an expert with layers `hidden` on its products and vectors; for each label
    a gate over the experts and a tower with layers `tower`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        tables: int = 2,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        tasks = len(schema.labels)
        self.tables = tables
        self.inputs = Inputs(schema, tables * width, dropout=dropout)
        self.vectors = FieldVectors(schema, tables * width)
        self.products = InnerProducts(len(self.vectors))
        seen = self.products.width + len(self.vectors) * width + len(schema.numbers)
        self.experts = Bank(tables, seen, *hidden, activate_last=True)
        self.gates = SoftmaxGate(self.inputs.width, tasks, tables, gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        by_table = self.vectors(x).unflatten(2, (self.tables, -1)).transpose(1, 2)
        products = self.products(by_table.flatten(0, 1)).view(len(x), self.tables, self.products.width)
        numbers = x[:, None, self.vectors.embedded :].expand(-1, self.tables, -1)
        experts = self.experts(torch.cat([products, by_table.flatten(2), numbers], dim=2))
        return self.towers(mix(self.gates(x), experts)).flatten(1)  # type: ignore[no-any-return]
