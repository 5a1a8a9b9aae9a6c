"""A KD-tree (Bentley, CACM 1975), exact: what shows that cutting space along its axes says little in 64 dimensions.

The largest inner product becomes the smallest distance by one more coordinate √(L² - |x|²), L being the greatest length
(Bachrach et al., RecSys 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree as Tree

FILE = "vectors.npy"
LEAF = 64

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KDTree:
    """Has no parameter."""


@dataclass
class KDTreeEngine:
    """The tree is made anew from the vectors (N, D) when they are loaded or more are added."""

    vectors: Floats

    recipe = KDTree()

    def __post_init__(self) -> None:
        squares = np.square(self.vectors, dtype=np.float64).sum(axis=1)
        rest = np.sqrt(squares.max(initial=0) - squares)
        self.tree = Tree(np.column_stack([self.vectors, rest]), leafsize=LEAF)

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        _, places = self.tree.query(np.pad(queries, ((0, 0), (0, 1))), np.arange(1, k + 1))
        return places, np.einsum("qd,qkd->qk", queries, self.vectors[places])

    def add(self, vectors: Floats) -> None:
        self.vectors = np.concatenate([self.vectors, vectors])
        self.__post_init__()

    def save(self, folder: Path) -> None:
        np.save(folder / FILE, self.vectors)


def build(vectors: Floats) -> KDTreeEngine:
    return KDTreeEngine(vectors)


def load(folder: Path) -> KDTreeEngine:
    return KDTreeEngine(np.load(folder / FILE, mmap_mode="r"))
