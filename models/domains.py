"""What models with a part for each domain share: tables of a domain's own, and gradients that stay in it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.schema import Schema


class DomainCross(nn.Module):
    """Crosses every field, and every bucket of elapsed time, with the domain, so that each domain has its own tables.

    A code c of a field with n codes becomes p·n + c in domain p; `schema` describes the new batch. The field `domain`
    is left out, unless a history has it: within a domain it is constant, and a constant divided by its deviation is
    noise.
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
        for name, columns, gaps in self.sequences:
            of_event = domain[batch[f"{name}.row"]]
            crossed[f"{name}.fields"] = batch[f"{name}.fields"] + self.shifts[columns] + of_event * self.sizes[columns]
            crossed[f"{name}.gap"] = batch[f"{name}.gap"] + of_event[:, 0] * gaps
        return crossed


def own_gradient(per_domain: Float[Tensor, "B P D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B P D"]:
    """The same values, of which only the entry of the row's own domain passes a gradient back."""
    own = domain[:, None] == torch.arange(per_domain.shape[1], device=domain.device)
    return torch.where(own[..., None], per_domain, per_domain.detach())
