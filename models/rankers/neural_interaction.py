"""Neural interaction: vectors are compressed after all pairs of them have met, and not before as in All-interaction.

The N(N+1)/2 products v_i ⊙ v_j with i ≤ j are linearly compressed to a few vectors along the axis of pairs, which go to
a network with the input. There is no paper of it: it is the first layer of xDeepFM's compressed interaction network
(Lian et al., KDD 2018) without its pooling.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import GateNU
from models.interactions import CrossedInputs
from models.layers import mlp, vector_roles
from models.schema import Schema


class MixedPairs(nn.Module):
    """Σ_{i≤j} W_{k,ij} v_i ⊙ v_j for each k of `mixtures`, next to each other; each has D = `width` numbers.

    Computed as Σ_i v_i ⊙ Σ_{j≥i} W_{k,ij} v_j, so that the pairs are never in memory. `gate` is the hidden size of a
    `GateNU` from all vectors to what passes of the mixtures; 0 leaves it out.
    """

    def __init__(self, vectors: int, width: int, mixtures: int, gate: int = 0) -> None:
        super().__init__()
        pairs = math.comb(vectors + 1, 2)
        bound = 1 / math.sqrt(pairs)
        self.width = mixtures * width
        self.weight = nn.Parameter(torch.empty(mixtures, pairs).uniform_(-bound, bound))
        self.gate = GateNU(vectors * width, self.width, gate) if gate else None

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B width"]:
        count = vectors.shape[1]
        row, column = torch.triu_indices(count, count, device=vectors.device)
        upper = self.weight.new_zeros(len(self.weight), count, count)
        upper[:, row, column] = self.weight
        partners = torch.einsum("kij,bjd->bkid", upper, vectors)
        mixed = (vectors[:, None] * partners).sum(dim=2).flatten(1)
        return mixed if self.gate is None else mixed * self.gate(vectors.flatten(1))


class NeuralInteraction(nn.Module):
    """Vectors of `width` numbers, `mixtures` of their pairs, and layers `hidden` on the input and the mixtures.

    `gate` is the hidden size of a gate on the mixtures; 0 leaves it out.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        mixtures: int = 16,
        gate: int = 0,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        pairs = MixedPairs(len(vector_roles(schema)), width, mixtures, gate)
        self.inputs = CrossedInputs(schema, width, pairs, dropout=dropout)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
