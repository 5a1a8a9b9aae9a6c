"""HMoE: Li et al., Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task Relationships in the
Label Space, CIKM 2020.

Hybrid of implicit and explicit mixture-of-experts. Implicit: MMoE with a gate and a tower for each domain. Explicit:
every domain's tower scores every row, and a gate of the row's own domain mixes these scores; those of other domains
pass no gradient, so that a domain's gates and tower learn from its own rows alone. Differs from the paper: a domain's
tower has a logit for each label, the gate over the scores knows the domain and not the row, and the input is
standardised. No loss holds another domain's score on this row in bounds, so a gate that reads the row follows what
moves at random.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.domains import own_gradient
from models.gates import SoftmaxGate
from models.layers import Bank, Inputs, mix
from models.schema import Schema


class HMoE(nn.Module):
    """Experts with layers `hidden`, and for each domain a gate over them, a tower with layers `tower`, and a gate over
    the towers' scores, which begins with e^`trust` times as much weight on its own as on another domain's."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        experts: int = 4,
        hidden: tuple[int, ...] = (128,),
        tower: tuple[int, ...] = (64,),
        trust: float = 2.0,
        dropout: float = 0.0,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        domains = len(schema.domains)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.experts = Bank(experts, self.inputs.width, *hidden, activate_last=True)
        self.gates = SoftmaxGate(self.inputs.width, domains, experts, gate_dropout)
        self.towers = Bank(domains, hidden[-1], *tower, len(schema.labels))
        self.relations = nn.Parameter(trust * torch.eye(domains))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        x, domain = self.inputs(batch), batch["domain"]
        scores = self.towers(mix(self.gates(x), self.experts(x)))
        weights = self.relations.softmax(dim=1).index_select(0, domain)
        return mix(weights[:, None], own_gradient(scores, domain)).flatten(1)
