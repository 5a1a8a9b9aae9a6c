"""PEPNet: Chang et al., Parameter and Embedding Personalized Network for Infusing with Personalized Prior
Information, KDD 2023 (arXiv:2302.01115).

EPNet gates the input by domain; PPNet gates each hidden layer of each task's tower by who looks at what of whom. Both
gates see the input but do not train it. Differs from the paper: the hidden size of all gates is one number, and the
input is standardised.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.gates import EmbeddingGate, GatedTowers
from models.layers import Inputs, field_columns
from models.schema import Schema


class PEPNet(nn.Module):
    """Task towers with layers `hidden`; `prior` names the id fields PPNet is told, those absent from the schema
    are left out; `gate` is the hidden size of the gates."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (64, 32),
        gate: int = 32,
        prior: tuple[str, ...] = ("user_id", "item_id", "author_id"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.prior = field_columns(schema, width, *prior)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.embedding_gate = EmbeddingGate(len(schema.domains), width, self.inputs.width, gate)
        self.towers = GatedTowers(
            len(schema.labels), self.inputs.width, len(self.prior) + self.inputs.width, hidden, gate
        )

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        gated = self.embedding_gate(x, batch["domain"])
        return self.towers(gated, x[:, self.prior], gated.detach())  # type: ignore[no-any-return]
