"""Interactions: blocks that let the N field vectors of a row, (B, N, D), meet, and return `width` numbers, (B, width).

`InteractionTerm` makes them a logit for each label, `CrossedInputs` lets a network read them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import FieldVectors, Inputs
from models.schema import Schema


@runtime_checkable
class Interaction(Protocol):
    """What every block here is."""

    width: int

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """(B, N, D) → (B, width)."""


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        total = vectors.sum(dim=1)
        ctx.save_for_backward(vectors, total)
        return (total.square() - vectors.square().sum(dim=1)) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        vectors, total = ctx.saved_tensors
        return (total[:, None] - vectors).mul_(gradient[:, None])  # type: ignore[no-any-return]


class FMPairs(nn.Module):
    """Σ_{i<j} v_i ⊙ v_j = ½((Σv)² − Σv²) in O(N·D) (Rendle, Factorization Machines, ICDM 2010, Lemma 3.1).

    The sum of these D numbers is Σ_{i<j} ⟨v_i, v_j⟩. The gradient for v_i is Σv − v_i, one pass over the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        return _Pairs.apply(vectors)  # type: ignore[no-any-return,no-untyped-call]


class InnerProducts(nn.Module):
    """⟨v_i, v_j⟩ of every pair i < j of `vectors` vectors (Qu et al., Product-based Neural Networks, ICDM 2016,
    §III.B)."""

    def __init__(self, vectors: int) -> None:
        super().__init__()
        self.width = math.comb(vectors, 2)

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B width"]:
        return above_diagonal(vectors @ vectors.mT)


class GwPFMPairs(nn.Module):
    """Σ_{g<h} w_{gh} Σ_{i∈g} Σ_{j∈h} v_{i,h} ⊙ v_{j,g} (Pan et al., Ads Recommendation in a Collapsed and Entangled
    World, KDD 2024, §4.3), whose D = `width` numbers sum to the group-weighted part-aware FM.

    `groups` says which of G groups each of the N vectors is in. A vector is G parts next to each other, one for
    meeting each group. A double sum is a product of two sums, so that its cost does not grow with the pairs.
    """

    member: Tensor

    def __init__(self, groups: Sequence[Hashable], width: int) -> None:
        super().__init__()
        names = list(dict.fromkeys(groups))
        self.width = width
        self.weights = nn.Parameter(torch.ones(math.comb(len(names), 2)))
        self.register_buffer("member", torch.tensor([[float(group == name) for group in groups] for name in names]))

    def forward(self, vectors: Float[Tensor, "B N parts"]) -> Float[Tensor, "B D"]:
        parts = vectors.unflatten(2, (-1, self.width))
        sums = torch.einsum("gn,bnhd->bghd", self.member, parts)
        return torch.einsum("p,bpd->bd", self.weights, above_diagonal(sums * sums.transpose(1, 2)))


class CIN(nn.Module):
    """The compressed interaction network (Lian et al., xDeepFM, KDD 2018, §3.1):

    x^k_h = Σ_{i,j} W^{k,h}_{ij} x^{k−1}_i ⊙ x^0_j for h in 1 … `maps[k]`, x^0 being the N vectors.

    Returns all x^k_h, each summed over its D components. No activation, as the paper found best.
    """

    def __init__(self, vectors: int, maps: Sequence[int]) -> None:
        super().__init__()
        self.width = sum(maps)
        self.compress = nn.ModuleList(
            nn.Linear(before * vectors, after, bias=False) for before, after in pairwise((vectors, *maps))
        )

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B width"]:
        first = x = vectors.mT
        pooled = []
        for layer in self.compress:
            x = layer((x[..., :, None] * first[..., None, :]).flatten(2))
            pooled.append(x.sum(dim=1))
        return torch.cat(pooled, dim=1)


class InteractionTerm(nn.Module):
    """A term of the logit for each label: the numbers of `interaction`, summed with weights of the label's own.

    Standardised vectors are all of one size; here each field learns a size for each of its components, so that some
    meetings matter more than others. Sizes begin small and weights at 1, which is the plain sum.
    """

    def __init__(self, schema: Schema, width: int, interaction: Interaction) -> None:
        super().__init__()
        self.vectors = FieldVectors(schema, width)
        self.sizes = nn.Parameter(torch.full((len(self.vectors), width), 0.1))
        self.interaction = interaction
        self.weights = nn.Parameter(torch.ones(interaction.width, len(schema.labels)))

    def forward(self, x: Float[Tensor, "B inputs"]) -> Float[Tensor, "B T"]:
        return self.interaction(self.vectors(x) * self.sizes) @ self.weights


class CrossedInputs(nn.Module):
    """What `Inputs` gives ‖ the numbers of `interaction`, divided by √D so that a network reads both at one size."""

    def __init__(self, schema: Schema, width: int, interaction: Interaction, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.vectors = FieldVectors(schema, width)
        self.interaction = interaction
        self.width = self.inputs.width + interaction.width

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B width"]:
        x = self.inputs(batch)
        return torch.cat([x, self.interaction(self.vectors(x)) / math.sqrt(self.vectors.width)], dim=1)


def above_diagonal(matrix: Float[Tensor, "B N N ..."]) -> Float[Tensor, "B pairs ..."]:
    """The entries i < j, row by row."""
    row, column = torch.triu_indices(matrix.shape[1], matrix.shape[2], offset=1, device=matrix.device)
    return matrix[:, row, column]
