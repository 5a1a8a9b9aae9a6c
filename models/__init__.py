"""Ranking and retrieval models: torch alone, told about their input by a `Schema`."""

from __future__ import annotations

from torch import nn

from models.rankers.dcn import DCN
from models.rankers.dcnv2 import DCNv2
from models.rankers.din import DIN
from models.rankers.flat_dnn import FlatDNN
from models.rankers.gated_dcn import GatedDCN
from models.rankers.gbdt_lr import GBDTLR
from models.rankers.lhuc import LHUC
from models.rankers.lr import LR
from models.rankers.mmcn import MMCN
from models.rankers.mmoe import MMoE
from models.rankers.pepnet import PEPNet
from models.rankers.recyclenet import RecycleNet
from models.rankers.senet import SENet
from models.rankers.star import STAR
from models.rankers.wide_deep import WideDeep
from models.schema import Schema

__all__ = ["RANKERS", "Schema"]

RANKERS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "gbdt_lr": GBDTLR,
    "flat_dnn": FlatDNN,
    "wide_deep": WideDeep,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "gated_dcn": GatedDCN,
    "mmcn": MMCN,
    "lhuc": LHUC,
    "recyclenet": RecycleNet,
    "senet": SENet,
    "din": DIN,
    "mmoe": MMoE,
    "star": STAR,
    "pepnet": PEPNet,
}
