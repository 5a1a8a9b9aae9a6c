"""SENet: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018 (arXiv:1709.01507), with fields for channels as in
Huang et al., FiBiNET, RecSys 2019, §3.2 (arXiv:1905.09433).

Each field's vector is squeezed to its mean, and all fields are weighted by σ(W₂ ReLU(W₁ z)) before the MLP, which has
the numbers beside them. Differs from FiBiNET: σ as in Hu et al. in the place of its last ReLU, which may lose a field
for good, and an MLP in the place of its bilinear interactions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import FieldVectors, Inputs, mlp
from models.schema import Schema


class SqueezeExcite(nn.Module):
    """N weights for N vectors; `reduction` is how many times narrower the hidden layer is."""

    def __init__(self, vectors: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, vectors // reduction)
        self.squeeze = nn.Linear(vectors, hidden, bias=False)
        self.excite = nn.Linear(hidden, vectors, bias=False)

    def weights(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
        return torch.sigmoid(self.excite(self.squeeze(vectors.mean(dim=2)).relu()))

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return vectors * self.weights(vectors)[:, :, None]


class SENet(nn.Module):
    """Weighted fields and a network with layers `hidden`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        reduction: int = 3,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.vectors = FieldVectors(schema, width)
        self.weigh = SqueezeExcite(len(self.vectors), reduction)
        self.net = mlp(width * len(self.vectors) + len(schema.numbers), *hidden, len(schema.labels))

    def weights(self, batch: dict[str, Tensor]) -> Float[Tensor, "B N"]:
        """How much of each of the `FieldVectors`, the schema's fields first, goes on to the network."""
        return self.weigh.weights(self.vectors(self.inputs(batch)))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        weighed = self.weigh(self.vectors(x)).flatten(1)
        return self.net(torch.cat([weighed, x[:, self.vectors.embedded :]], dim=1))  # type: ignore[no-any-return]
