"""Composed: parts of the other rankers on top of each other, chosen by hyper-parameters; it is no paper's.

Encoder of the histories → EPNet → K tables, each with an interaction → CGC or PLE → towers with PPNet. TIM under PEPNet
over PLE with two tables is `encoder="tim", tables=2, levels=2, epnet=True, ppnet=True`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.experts import InteractingExpert, extraction
from models.gates import EmbeddingGate, GatedTowers, SoftmaxGate
from models.layers import Bank, FieldVectors, Inputs, field_columns, mix
from models.objective import Criterion
from models.recurrent import InterestEvolution, InterestMemory
from models.schema import Schema
from models.sequences import ActivationUnit, Factory, LongAndShort, Pooling, TemporalInterest

ENCODERS: dict[str, Factory] = {
    "mean": Pooling,
    "din": ActivationUnit,
    "dien": InterestEvolution,
    "mimn": InterestMemory,
    "sim": LongAndShort,
    "tim": TemporalInterest,
}


class Composed(nn.Module):
    """`encoder` of the histories; `tables` of `width`, each with an expert with layers `hidden` on its `interaction`
    (none, fm, ipnn, cin, dcnv2); `levels` of extraction (0: a shared bottom, 1: CGC, more: PLE; without `own` experts
    one level is MMoE); `epnet` gates the input and `ppnet` the towers, whose layers are `tower`. `auxiliary` is the
    weight of an encoder's own loss."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        encoder: str = "mean",
        interaction: str = "none",
        tables: int = 1,
        hidden: tuple[int, ...] = (128,),
        levels: int = 0,
        own: int = 1,
        shared: int = 2,
        epnet: bool = False,
        ppnet: bool = False,
        tower: tuple[int, ...] = (64,),
        gate: int = 32,
        prior: tuple[str, ...] = ("user_id", "item_id", "author_id"),
        auxiliary: float = 1.0,
        dropout: float = 0.0,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder {encoder!r} is unknown; it is one of {', '.join(ENCODERS)}")
        tasks, numbers = len(schema.labels), len(schema.numbers)
        self.auxiliary = auxiliary if encoder in ("dien", "mimn") else None
        self.tables = tables
        self.inputs = Inputs(schema, tables * width, dropout=dropout, encoder=ENCODERS[encoder])
        into = self.inputs.width
        self.prior = field_columns(schema, tables * width, *prior)
        self.embedding_gate = EmbeddingGate(len(schema.domains), width, into, gate) if epnet else None
        self.vectors = FieldVectors(schema, tables * width)
        self.experts = nn.ModuleList(
            InteractingExpert(interaction, len(self.vectors), width, numbers, hidden) for _ in range(tables)
        )
        self.table_gate = SoftmaxGate(into, 1, tables, gate_dropout) if tables > 1 else None
        self.extraction = extraction(levels, hidden[-1], tasks, own, shared, hidden[-1:], gate_dropout)
        told, h = len(self.prior) + into, hidden[-1]
        self.towers = GatedTowers(tasks, h, told, tower, gate) if ppnet else Bank(tasks, h, *tower, 1)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.score(self.inputs(batch), batch)

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Tensor:
        if self.auxiliary is None:
            return criterion(self(batch), batch).sum()
        x, of_encoder = self.inputs.with_loss(batch)
        return criterion(self.score(x, batch), batch).sum() + self.auxiliary * of_encoder

    def score(self, x: Float[Tensor, "B inputs"], batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        """The logits of what `inputs` gives for a batch."""
        ids = x[:, self.prior]
        if self.embedding_gate is not None:
            x = self.embedding_gate(x, batch["domain"])
        vectors = self.vectors(x).unflatten(2, (self.tables, -1)).unbind(dim=2)
        numbers = x[:, self.vectors.embedded :]
        said = [expert(own, numbers) for expert, own in zip(self.experts, vectors, strict=True)]
        mixed = said[0] if self.table_gate is None else mix(self.table_gate(x), torch.stack(said, dim=1)).flatten(1)
        extracted = self.extraction(mixed)
        if isinstance(self.towers, GatedTowers):
            return self.towers(extracted, ids, x.detach())  # type: ignore[no-any-return]
        return self.towers(extracted).flatten(1)  # type: ignore[no-any-return]
