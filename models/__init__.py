"""Ranking and retrieval models: torch alone, told about their input by a `Schema`."""

from __future__ import annotations

from torch import nn

from models.rankers.din import DIN
from models.rankers.flat_dnn import FlatDNN
from models.rankers.lr import LR
from models.rankers.mmoe import MMoE
from models.rankers.pepnet import PEPNet
from models.rankers.star import STAR
from models.schema import Schema

__all__ = ["RANKERS", "Schema"]

RANKERS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "flat_dnn": FlatDNN,
    "din": DIN,
    "mmoe": MMoE,
    "star": STAR,
    "pepnet": PEPNet,
}
