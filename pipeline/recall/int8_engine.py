"""Brute force in 8 bits: every vector as whole numbers of its own scale, compared by torch on the CPU or the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CODES, SCALES = "codes.npy", "scales.npy"
LARGEST = 127
AT_ONCE = 1 << 25
BLOCK = 512
GPU_ROWS, GPU_COLUMNS = 32, 16

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Int8:
    """A quarter of the memory of float32, and no parameter."""


@dataclass
class Int8Engine:
    """Vector n (of N) is `codes[n] * scales[n]`."""

    codes: npt.NDArray[np.int8]
    scales: Floats

    recipe = Int8()

    def __post_init__(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        codes, scales = torch.from_numpy(self.codes), torch.from_numpy(self.scales)
        if device == "cuda":  # whose kernel wants sides of multiples of 16
            codes = _padded(codes, *(-(-size // GPU_COLUMNS) * GPU_COLUMNS for size in codes.shape))
        self.on_device = codes.to(device), scales.to(device)

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        codes, scales = self.on_device
        asked, own = (torch.from_numpy(part) for part in quantise(queries))
        parts = []
        for part in torch.arange(len(asked)).split(max(1, AT_ONCE // max(1, len(scales)))):
            products = multiply(asked[part].to(codes.device), codes)[:, : len(scales)]
            found, values = largest(products * scales, k)
            parts.append((found.cpu(), values.cpu() * own[part, None]))
        places, scores = (torch.cat(columns).numpy() for columns in zip(*parts, strict=True))
        return places, scores

    def add(self, vectors: Floats) -> None:
        codes, scales = quantise(vectors)
        self.codes, self.scales = np.concatenate([self.codes, codes]), np.concatenate([self.scales, scales])
        self.__post_init__()

    def save(self, folder: Path) -> None:
        np.save(folder / CODES, self.codes)
        np.save(folder / SCALES, self.scales)


def build(vectors: Floats) -> Int8Engine:
    return Int8Engine(*quantise(vectors))


def load(folder: Path) -> Int8Engine:
    """Map the codes into memory; copy on write, as torch has no tensors that are only read."""
    return Int8Engine(*(np.load(folder / name, mmap_mode="c") for name in (CODES, SCALES)))


def quantise(vectors: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Codes (N, D) from -127 to 127 and scales (N,) such that codes · scale is within half a scale of the vectors."""
    scales = (np.abs(vectors).max(axis=1, initial=0) / LARGEST).astype(np.float32)
    codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None])
    return codes.astype(np.int8), scales


def multiply(queries: Tensor, codes: Tensor) -> Tensor:
    """Exact products (Q, N) of int8 queries (Q, D) and codes (N, ≥ D) whose further columns are 0."""
    if queries.is_cuda:
        padded = _padded(queries, max(GPU_ROWS, len(queries)), codes.shape[1])
        return torch._int_mm(padded, codes.T)[: len(queries)]
    return torch._int_mm(queries, codes.T)


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places and values (Q, k) of the largest of scores (Q, N), best first.

    No block of numbers outside the k with the largest maxima has one of the k largest: only those are sorted.
    """
    blocks = scores.shape[1] // BLOCK
    if blocks <= k:
        best = scores.topk(k)
        return best.indices, best.values
    whole = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    chosen = whole.amax(dim=2).topk(k).indices
    within = torch.arange(BLOCK, device=scores.device)
    rest = torch.arange(blocks * BLOCK, scores.shape[1], device=scores.device).expand(len(scores), -1)
    places = torch.cat([(chosen[:, :, None] * BLOCK + within).flatten(1), rest], dim=1)
    best = scores.gather(1, places).topk(k)
    return places.gather(1, best.indices), best.values


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with rows and columns of 0 behind it."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - len(matrix)))
