"""STAR: Sheng et al., One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction,
CIKM 2021 (arXiv:2101.11427).

A layer's weights are W_p ⊙ W and b_p + b for domain p, behind a normalisation partitioned by domain, and the logit
of a small auxiliary network is added. Differs from the paper: batches mix domains, so rows are sorted by domain into
blocks of one domain each; a domain with a single row in a batch is normalised with the running statistics. The input
is standardised over all domains first, as in the other rankers here: the partitioned normalisation undoes it, and
the auxiliary network needs it. The domain's own embedding goes to the auxiliary network alone: within a domain it is
constant, and a constant divided by its deviation is noise.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layers import Inputs, Standardise, field_columns, mlp
from models.schema import Schema

BLOCK = 64


class PartitionedNorm(nn.Module):
    """(γ γ_p)(z − E_p) / √(Var_p + ε) + (β + β_p) (§4.2)."""

    def __init__(self, domains: int, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(domains, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.domain_scale = nn.Parameter(torch.ones(domains, width))
        self.domain_shift = nn.Parameter(torch.zeros(domains, width))

    def forward(self, z: Float[Tensor, "B D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        scale = (self.scale * self.domain_scale).index_select(0, domain)
        shift = (self.shift + self.domain_shift).index_select(0, domain)
        return torch.addcmul(shift, self.standardise(z, domain), scale)


def blocks(domain: Int[Tensor, " B"], domains: int) -> tuple[Int[Tensor, " B"], Int[Tensor, " N"]]:
    """Room for the rows in N blocks of `BLOCK` places with one domain each: every row's place, every block's domain.

    N depends on the number of rows alone and suffices for any mixture of domains; blocks may be left empty.
    """
    domain, order = domain.sort(stable=True)
    count = domain.new_zeros(domains).index_add(0, domain, torch.ones_like(domain))
    size = (count + BLOCK - 1) // BLOCK
    blocks_end, rows_end = size.cumsum(0), count.cumsum(0)
    within = torch.arange(len(domain), device=domain.device) - (rows_end - count)[domain]
    place = torch.empty_like(order).index_copy(0, order, (blocks_end - size)[domain] * BLOCK + within)
    block = torch.arange(len(domain) // BLOCK + domains, device=domain.device)
    return place, torch.searchsorted(blocks_end, block, right=True).clamp(max=domains - 1)


class StarLinear(nn.Module):
    """W_p ⊙ W and b_p + b (§4.3): a linear layer for all domains and its correction for each, which begins as none."""

    def __init__(self, domains: int, into: int, out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(into)
        self.weight = nn.Parameter(torch.empty(into, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))
        self.domain_weight = nn.Parameter(torch.ones(domains, into, out))
        self.domain_bias = nn.Parameter(torch.zeros(domains, out))

    def forward(self, x: Float[Tensor, "N block into"], domain: Int[Tensor, " N"]) -> Float[Tensor, "N block out"]:
        """Blocks of rows, each of one domain."""
        weight = self.weight * self.domain_weight
        bias = self.bias + self.domain_bias
        return torch.bmm(x, weight.index_select(0, domain)) + bias.index_select(0, domain)[:, None]


class STAR(nn.Module):
    """Layers `hidden` for each domain; `auxiliary` is the hidden size of the auxiliary network."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        auxiliary: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        domains, labels = len(schema.domains), len(schema.labels)
        self.inputs = Inputs(schema, width, dropout=dropout)
        of_domain = field_columns(schema, width, "domain")
        self.columns = [i for i in range(self.inputs.width) if i not in of_domain]
        self.normalise = PartitionedNorm(domains, len(self.columns))
        self.layers = nn.ModuleList(
            StarLinear(domains, into, out) for into, out in pairwise((len(self.columns), *hidden, labels))
        )
        self.domain = nn.Embedding(domains, width)
        self.auxiliary = mlp(width + self.inputs.width, auxiliary, labels)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        domain = batch["domain"]
        x = self.inputs(batch)
        auxiliary = self.auxiliary(torch.cat([self.domain(domain), x], dim=1))
        return self.star(self.normalise(x[:, self.columns], domain), domain) + auxiliary  # type: ignore[no-any-return]

    def star(self, x: Float[Tensor, "B D"], domain: Int[Tensor, " B"]) -> Float[Tensor, "B T"]:
        """The network of each row's own domain."""
        place, block_domain = blocks(domain, len(self.domain.weight))
        x = x.new_zeros(len(block_domain) * BLOCK, x.shape[1]).index_copy(0, place, x)
        x = x.view(len(block_domain), BLOCK, x.shape[1])
        for layer in self.layers[:-1]:
            x = layer(x, block_domain).relu()
        return self.layers[-1](x, block_domain).flatten(0, 1).index_select(0, place)  # type: ignore[no-any-return]
