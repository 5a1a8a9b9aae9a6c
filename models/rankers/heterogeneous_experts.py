"""Heterogeneous experts with multi-embedding: Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD
2024 (arXiv:2403.00793), §4.2.

GwPFM and FlatDNN share one table, IPNN has another; a gate weighs them. Differs from the paper: a field's group is its
role, GwPFM weighs the pairs of groups once for each unit of its output instead of once, there is a gate and a tower
for each label, and the input is standardised.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import SoftmaxGate
from models.layers import Bank, FieldVectors, Inputs, mix, mlp
from models.rankers.multi_embedding import products_and_vectors
from models.schema import Schema


class GroupProducts(nn.Module):
    """Σ_{i∈g} Σ_{j∈h} ⟨v_{i,h}, v_{j,g}⟩ for each pair of groups g < h, where v_{i,h} is what field i shows to fields
    of group h."""

    members: Tensor

    def __init__(self, group: list[int]) -> None:
        super().__init__()
        groups = max(group) + 1
        members = nn.functional.one_hot(torch.tensor(group), groups).float()
        self.register_buffer("members", members, persistent=False)
        self.pairs = groups * (groups - 1) // 2

    def forward(self, vectors: Float[Tensor, "B N G D"]) -> Float[Tensor, "B pairs"]:
        groups = vectors.shape[2]
        sums = torch.einsum("ng,bnhd->bghd", self.members, vectors)
        first, second = torch.triu_indices(groups, groups, offset=1, device=vectors.device)
        return torch.einsum("bghd,bhgd->bgh", sums, sums)[:, first, second]


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
        roles = FieldVectors(schema, width).roles
        names = list(dict.fromkeys(roles))
        self.groups = len(names)
        total = width * (self.groups + 1)
        self.inputs = Inputs(schema, total, dropout=dropout)
        self.vectors = FieldVectors(schema, total)
        n = len(roles)
        self.products = GroupProducts([names.index(role) for role in roles])
        self.gwpfm = mlp(self.products.pairs, *hidden)
        self.flat_dnn = mlp(n * self.groups * width, *hidden)
        self.ipnn = mlp(n * (n - 1) // 2 + n * width, *hidden)
        self.gates = SoftmaxGate(self.inputs.width, tasks, 3, gate_dropout)
        self.towers = Bank(tasks, hidden[-1], *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        vectors = self.vectors(x).unflatten(2, (self.groups + 1, -1))
        first, second = vectors[:, :, :-1], vectors[:, :, -1]
        experts = [
            self.gwpfm(self.products(first)),
            self.flat_dnn(first.flatten(1)),
            self.ipnn(products_and_vectors(second)),
        ]
        return self.towers(mix(self.gates(x), torch.stack(experts, dim=1).relu())).flatten(1)  # type: ignore[no-any-return]
