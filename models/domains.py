"""Parts with something of each domain's own: tables, normalisation, linear layers, and gradients that stay in it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.grouped import grouped_linear
from models.layers import Standardise
from models.schema import Schema


class DomainCross(nn.Module):
    """Crosses every field, and every bucket of elapsed time, with the domain, so that each domain has its own tables.

    A code c of a field with n codes becomes p·n + c in domain p; `schema` describes the new batch. The field `domain`
    is left out, unless a history has it: within a domain it is constant, and a constant divided by its deviation is
    noise. Where it stays for the events' sake, the model leaves the row's own out.
    """

    sizes: Tensor
    shifts: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        domains = len(schema.domains)
        kept = {name for sequence in schema.sequences for name in sequence.fields}
        self.columns = [i for i, field in enumerate(schema.fields) if field.name != "domain" or field.name in kept]
        fields = [schema.fields[i] for i in self.columns]
        self.schema = replace(
            schema,
            fields=tuple(replace(field, size=domains * field.size) for field in fields),
            sequences=tuple(replace(sequence, gaps=domains * sequence.gaps) for sequence in schema.sequences),
        )
        self.sequences = [
            (sequence.name, [self.schema.position(name) for name in sequence.fields], sequence.gaps)
            for sequence in schema.sequences
        ]
        before = torch.tensor([schema.offsets[i] for i in self.columns])
        self.register_buffer("sizes", torch.tensor([field.size for field in fields]), persistent=False)
        self.register_buffer("shifts", torch.tensor(self.schema.offsets) - before, persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        domain = batch["domain"][:, None]
        crossed = {**batch, "fields": batch["fields"][:, self.columns] + self.shifts + domain * self.sizes}
        if "asker" in batch:
            domain = domain[batch["asker"].unique_consecutive(return_counts=True)[1].cumsum(0) - 1]
        for name, columns, gaps in self.sequences:
            of_event = domain[batch[f"{name}.row"]]
            crossed[f"{name}.fields"] = batch[f"{name}.fields"] + self.shifts[columns] + of_event * self.sizes[columns]
            crossed[f"{name}.gap"] = batch[f"{name}.gap"] + of_event[:, 0] * gaps
        return crossed


def own_gradient(per_domain: Float[Tensor, "B P D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B P D"]:
    """The same values, of which only the entry of the row's own domain passes a gradient back."""
    own = domain[:, None] == torch.arange(per_domain.shape[1], device=domain.device)
    return torch.where(own[..., None], per_domain, per_domain.detach())


class PartitionedNorm(nn.Module):
    """(γ γ_p)(z − E_p) / √(Var_p + ε) + (β + β_p) (Sheng et al., STAR, CIKM 2021, §4.2)."""

    def __init__(self, domains: int, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(domains, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.domain_scale = nn.Parameter(torch.ones(domains, width))
        self.domain_shift = nn.Parameter(torch.zeros(domains, width))

    def forward(self, z: Float[Tensor, "B D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        mean, scale = self.standardise.statistics(z, domain)
        scale = scale * self.scale * self.domain_scale
        shift = self.shift + self.domain_shift - mean * scale
        return torch.addcmul(shift.index_select(0, domain), z, scale.index_select(0, domain))


class StarLinear(nn.Module):
    """W_p ⊙ W and b_p + b: a linear layer for all domains and its correction for each, which begins as none (STAR,
    §4.3)."""

    def __init__(self, domains: int, into: int, out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(into)
        self.weight = nn.Parameter(torch.empty(into, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))
        self.domain_weight = nn.Parameter(torch.ones(domains, into, out))
        self.domain_bias = nn.Parameter(torch.zeros(domains, out))

    def forward(self, x: Float[Tensor, "B into"], count: Int[Tensor, " domains"]) -> Float[Tensor, "B out"]:
        """From rows that lie domain after domain, so many of each."""
        weight, bias = self.weight * self.domain_weight, self.bias + self.domain_bias
        return grouped_linear(x, weight, bias, count)  # type: ignore[no-any-return]
