"""Ranking and retrieval models: torch alone, told about their input by a `Schema`."""

from __future__ import annotations

from torch import nn

from models.rankers.all_interaction import AllInteraction
from models.rankers.ame import AME
from models.rankers.cgc import CGC
from models.rankers.composed import Composed
from models.rankers.dcn import DCN
from models.rankers.dcnv2 import DCNv2
from models.rankers.deepfm import DeepFM
from models.rankers.dien import DIEN
from models.rankers.din import DIN
from models.rankers.epnet import EPNet
from models.rankers.esmm import ESMM
from models.rankers.ffm import FFM
from models.rankers.field_projected import FieldProjected
from models.rankers.flat_dnn import FlatDNN
from models.rankers.fm import FM
from models.rankers.gated_dcn import GatedDCN
from models.rankers.gbdt_lr import GBDTLR
from models.rankers.gwpfm import GwPFM
from models.rankers.heterogeneous_experts import HeterogeneousExperts
from models.rankers.hmoe import HMoE
from models.rankers.ipnn import IPNN
from models.rankers.lhuc import LHUC
from models.rankers.lr import LR
from models.rankers.mimn import MIMN
from models.rankers.mmcn import MMCN
from models.rankers.mmoe import MMoE
from models.rankers.multi_embedding import MultiEmbedding
from models.rankers.neural_interaction import NeuralInteraction
from models.rankers.omoe import OMoE
from models.rankers.pepnet import PEPNet
from models.rankers.per_domain import PerDomain
from models.rankers.ple import PLE
from models.rankers.ppnet import PPNet
from models.rankers.recyclenet import RecycleNet
from models.rankers.saml import SAML
from models.rankers.senet import SENet
from models.rankers.shared_bottom import SharedBottom
from models.rankers.sim import SIM
from models.rankers.star import STAR
from models.rankers.stem import STEM
from models.rankers.stem_al import STEMAL
from models.rankers.tim import TIM
from models.rankers.wide_deep import WideDeep
from models.rankers.xdeepfm import XDeepFM
from models.rankers.youtube_dnn import YouTubeDNN
from models.schema import Schema

__all__ = ["RANKERS", "Schema"]

RANKERS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "gbdt_lr": GBDTLR,
    "fm": FM,
    "ffm": FFM,
    "gwpfm": GwPFM,
    "field_projected": FieldProjected,
    "ipnn": IPNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "gated_dcn": GatedDCN,
    "xdeepfm": XDeepFM,
    "all_interaction": AllInteraction,
    "neural_interaction": NeuralInteraction,
    "mmcn": MMCN,
    "lhuc": LHUC,
    "recyclenet": RecycleNet,
    "senet": SENet,
    "flat_dnn": FlatDNN,
    "per_domain": PerDomain,
    "youtube_dnn": YouTubeDNN,
    "din": DIN,
    "dien": DIEN,
    "mimn": MIMN,
    "sim": SIM,
    "tim": TIM,
    "shared_bottom": SharedBottom,
    "esmm": ESMM,
    "omoe": OMoE,
    "mmoe": MMoE,
    "cgc": CGC,
    "ple": PLE,
    "stem": STEM,
    "ame": AME,
    "stem_al": STEMAL,
    "star": STAR,
    "epnet": EPNet,
    "ppnet": PPNet,
    "pepnet": PEPNet,
    "saml": SAML,
    "hmoe": HMoE,
    "multi_embedding": MultiEmbedding,
    "heterogeneous_experts": HeterogeneousExperts,
    "composed": Composed,
}
