"""Ranking and retrieval models: torch alone, told about their input by a `Schema`."""

from __future__ import annotations

from torch import nn

from models.rankers.din import DIN
from models.rankers.epnet import EPNet
from models.rankers.flat_dnn import FlatDNN
from models.rankers.heterogeneous_experts import HeterogeneousExperts
from models.rankers.hmoe import HMoE
from models.rankers.lr import LR
from models.rankers.mmoe import MMoE
from models.rankers.multi_embedding import MultiEmbedding
from models.rankers.pepnet import PEPNet
from models.rankers.per_domain import PerDomain
from models.rankers.ppnet import PPNet
from models.rankers.saml import SAML
from models.rankers.star import STAR
from models.schema import Schema

__all__ = ["RANKERS", "Schema"]

RANKERS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "flat_dnn": FlatDNN,
    "din": DIN,
    "mmoe": MMoE,
    "star": STAR,
    "epnet": EPNet,
    "ppnet": PPNet,
    "pepnet": PEPNet,
    "saml": SAML,
    "hmoe": HMoE,
    "per_domain": PerDomain,
    "multi_embedding": MultiEmbedding,
    "heterogeneous_experts": HeterogeneousExperts,
}
