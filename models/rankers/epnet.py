"""EPNet: the half of PEPNet that gates embeddings (Chang et al., Parameter and Embedding Personalized Network for
Infusing with Personalized Prior Information, KDD 2023, §3.2), with FlatDNN behind it.

What differs from the paper is told at `models.rankers.pepnet`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import EmbeddingGate
from models.layers import Inputs, mlp
from models.schema import Schema


class EPNet(nn.Module):
    """One network with layers `hidden` for all labels; `gate` is the hidden size of the gate."""

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
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.embedding_gate = EmbeddingGate(len(schema.domains), width, self.inputs.width, gate)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.embedding_gate(self.inputs(batch), batch["domain"]))  # type: ignore[no-any-return]
