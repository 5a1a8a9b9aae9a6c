"""Ranking and retrieval models: torch alone, told about their input by a `Schema`."""

from __future__ import annotations

from torch import nn

from models.rankers.dien import DIEN
from models.rankers.din import DIN
from models.rankers.flat_dnn import FlatDNN
from models.rankers.lr import LR
from models.rankers.mimn import MIMN
from models.rankers.mmoe import MMoE
from models.rankers.pepnet import PEPNet
from models.rankers.sim import SIM
from models.rankers.star import STAR
from models.rankers.tim import TIM
from models.rankers.youtube_dnn import YouTubeDNN
from models.schema import Schema

__all__ = ["RANKERS", "Schema"]

RANKERS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "flat_dnn": FlatDNN,
    "youtube_dnn": YouTubeDNN,
    "din": DIN,
    "dien": DIEN,
    "mimn": MIMN,
    "sim": SIM,
    "tim": TIM,
    "mmoe": MMoE,
    "star": STAR,
    "pepnet": PEPNet,
}
