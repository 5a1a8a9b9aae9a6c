"""SAML: Chen et al., Scenario-aware and Mutual-based approach for Multi-scenario Recommendation in E-Commerce, ICDM
Workshops 2020 (arXiv:2012.08952).

Every feature has an embedding for all domains and one for each domain, and attention reads the histories in both
spaces. An auxiliary network, with a loss of its own, reads the global space; each of its layers also feeds the
branches, one a domain, which read the domain's space. A row passes all branches, and its own branch's output is
joined by all of them, mixed by their similarity to it. Other branches than the row's own pass no gradient.

Choices made here: the domain's vectors are narrow, and one matrix lifts them to the global width, so that the very
same attention serves both spaces; numbers enter the global space alone; the mutual unit stands behind the last hidden
layer, and its similarity is a bilinear form of unit vectors. Attention is DIN's; both inputs are standardised.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.domains import DomainCross, own_gradient
from models.layers import Bank, BankLinear, FieldEmbedding, Inputs, Standardise, mix, pick
from models.objective import Criterion
from models.schema import Schema
from models.sequences import ActivationUnit


class MutualUnit(nn.Module):
    """own ‖ Σ_q softmax_q(⟨M v_own, v_q⟩) v_q, over the branches' outputs scaled to unit length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)

    def forward(self, branches: Float[Tensor, "B P D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B _"]:
        branches = own_gradient(branches, domain)
        units = normalize(branches, dim=2)
        similarity = torch.einsum("bd,bpd->bp", self.map(pick(units, domain)), units)
        return torch.cat([pick(branches, domain), mix(similarity.softmax(dim=1)[:, None], units).flatten(1)], dim=1)


class SAML(nn.Module):
    """An auxiliary network and branches with layers `hidden`; `own_width` is the width of a domain's own embeddings,
    `attention` the hidden size of the activation unit, `auxiliary` the weight of the auxiliary network's loss."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        own_width: int = 4,
        hidden: tuple[int, ...] = (128, 64),
        attention: int = 32,
        auxiliary: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        domains, labels = len(schema.domains), len(schema.labels)
        self.auxiliary = auxiliary
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=partial(ActivationUnit, hidden=attention))
        self.cross = DomainCross(schema)
        self.own = FieldEmbedding(self.cross.schema, own_width)
        self.lift = nn.Linear(own_width, width, bias=False)
        self.varying = [i for i, field in enumerate(self.cross.schema.fields) if field.name != "domain"]
        in_own_space = width * len(self.varying) + self.inputs.histories.width
        self.standardise = Standardise(domains, in_own_space)
        shared = tuple(pairwise((self.inputs.width, *hidden)))
        self.shared = nn.ModuleList(nn.Linear(*sizes) for sizes in shared)
        self.bridges = nn.ModuleList(BankLinear(domains, *sizes) for sizes in shared)
        self.branches = nn.ModuleList(BankLinear(domains, *sizes) for sizes in pairwise((in_own_space, *hidden)))
        self.mutual = MutualUnit(hidden[-1])
        self.heads = Bank(domains, 2 * hidden[-1], labels)
        self.shared_head = nn.Linear(hidden[-1], labels)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.both(batch)[0]

    def loss(self, batch: dict[str, Tensor], criterion: Criterion) -> Float[Tensor, ""]:
        own, shared = self.both(batch)
        return criterion(own, batch).sum() + self.auxiliary * criterion(shared, batch).sum()

    def both(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Logits of the row's own domain, and of the auxiliary network."""
        shared, own = self.inputs(batch), self.own_space(batch)
        for layer, bridge, branch in zip(self.shared, self.bridges, self.branches, strict=True):
            own = (branch(own) + bridge(shared)).relu()
            shared = layer(shared).relu()
        logits = self.heads(self.mutual(own, batch["domain"]))
        return pick(logits, batch["domain"]), self.shared_head(shared)

    def own_space(self, batch: dict[str, Tensor]) -> Float[Tensor, "B _"]:
        """Fields and histories as the row's domain sees them."""
        crossed, schema = self.cross(batch), self.cross.schema
        fields, *events = map(self.lift, self.own(crossed["fields"], *self.inputs.histories.codes(crossed)))
        queries = [fields[:, [schema.position(name) for name in seq.fields]].flatten(1) for seq in schema.sequences]
        histories = self.inputs.histories(batch, queries, events)
        x = self.standardise(torch.cat([fields[:, self.varying].flatten(1), histories], dim=1), batch["domain"])
        return self.inputs.dropout(x)  # type: ignore[no-any-return]
