"""Heterogeneous experts with multi-embedding: Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD
2024 (arXiv:2403.00793), §4.2.

GwPFM and FlatDNN share one table, IPNN has another; a gate weighs them. Differs from the paper: a field's group is its
role, the components of GwPFM's products go to a network as they are, there is a gate and a tower for each label, and
the input is standardised.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.interactions import GwPFMPairs, InnerProducts
from models.layers import Bank, FieldVectors, Inputs, mix, mlp, vector_roles
from models.schema import Schema


class HeterogeneousExperts(nn.Module):
    """Experts with layers `hidden`; for each label a gate over them and a tower with layers `tower`. A vector of
    `width` for each group of fields is the first table's, one more is the second's."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        tasks = len(schema.labels)
        roles = vector_roles(schema)
        first, second = width * len(set(roles)), width
        self.sizes = [first, second]
        self.inputs = Inputs(schema, first + second, dropout=dropout)
        self.vectors = FieldVectors(schema, first + second)
        self.group_pairs = GwPFMPairs(roles, width)
        self.products = InnerProducts(len(roles))
        numbers = len(schema.numbers)
        seen = (width, len(roles) * first + numbers, self.products.width + len(roles) * second + numbers)
        self.experts = nn.ModuleList(nn.Sequential(mlp(into, *hidden), nn.ReLU()) for into in seen)
        self.gates = SoftmaxGate(self.inputs.width, tasks, len(seen), gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        first, second = self.vectors(x).split(self.sizes, dim=2)
        numbers = x[:, self.vectors.embedded :]
        flat_dnn = torch.cat([first.flatten(1), numbers], dim=1)
        ipnn = torch.cat([self.products(second), second.flatten(1), numbers], dim=1)
        seen = self.group_pairs(first), flat_dnn, ipnn
        experts = torch.stack([expert(part) for expert, part in zip(self.experts, seen, strict=True)], dim=1)
        return self.towers(mix(self.gates(x), experts)).flatten(1)  # type: ignore[no-any-return]
