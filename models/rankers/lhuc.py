"""LHUC: Swietojanski & Renals, Learning Hidden Unit Contributions for Unsupervised Speaker Adaptation of Neural
Network Acoustic Models, SLT 2014 (arXiv:1601.02828 is the longer version), as recommenders use it.

Each hidden layer is scaled by 2σ(g(context)), between 0 and 2. Differs from the paper: its scale is a free vector of
the speaker, learnt after the network; here a small network g gives it from the embeddings of the user's fields and
of the domain, learnt with all else. No gradient is stopped, as nothing in the paper asks for it.
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import GateNU
from models.layers import Inputs
from models.schema import Schema


class LHUC(nn.Module):
    """A network with layers `hidden`, scaled; `gate` is the hidden size of g."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        gate: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.user = [width * i + j for i in schema.positions("user") for j in range(width)]
        self.hidden = hidden
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.domain = nn.Embedding(len(schema.domains), width)
        self.gate = GateNU(len(self.user) + width, sum(hidden), gate)
        sizes = pairwise((self.inputs.width, *hidden, len(schema.labels)))
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in sizes)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        scales = self.gate(x[:, self.user], self.domain(batch["domain"]))
        for layer, scale in zip(self.layers, scales.split(self.hidden, dim=1), strict=False):
            x = layer(x).relu() * scale
        return self.layers[-1](x)  # type: ignore[no-any-return]
