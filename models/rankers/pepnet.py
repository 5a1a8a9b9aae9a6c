"""PEPNet: Chang et al., Parameter and Embedding Personalized Network for Infusing with Personalized Prior
Information, KDD 2023 (arXiv:2302.01115).

EPNet gates the input by domain; PPNet gates each hidden layer of each task's tower by who looks at what of whom. Both
gates see the input but do not train it. Differs from the paper: the hidden size of all gates is one number, and the
input is standardised.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gates import GateNU
from models.layers import BankLinear, Inputs
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
        tasks = len(schema.labels)
        self.prior = [i for i, field in enumerate(schema.fields) if field.name in prior]
        self.fields = (len(schema.fields), width)
        self.hidden = hidden
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.domain = nn.Embedding(len(schema.domains), width)
        self.embedding_gate = GateNU(width + self.inputs.width, self.inputs.width, gate)
        self.parameter_gate = GateNU(width * len(self.prior) + self.inputs.width, tasks * sum(hidden), gate)
        self.layers = nn.ModuleList(
            BankLinear(tasks, into, out) for into, out in pairwise((self.inputs.width, *hidden, 1))
        )

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x = self.inputs(batch)
        ids = x[:, : math.prod(self.fields)].unflatten(1, self.fields)[:, self.prior].flatten(1)
        x = x * self.embedding_gate(torch.cat([self.domain(batch["domain"]), x.detach()], dim=1))
        gates = self.parameter_gate(torch.cat([ids, x.detach()], dim=1))
        gates = gates.unflatten(1, (-1, sum(self.hidden))).split(self.hidden, dim=-1)
        for layer, gate in zip(self.layers, gates, strict=False):
            x = layer(x).relu() * gate
        return self.layers[-1](x).squeeze(-1)  # type: ignore[no-any-return]
