"""Geohashes (Niemeyer, 2008) as cells of a grid: text of a given precision ↔ column x and row y.

A geohash interleaves the bits of longitude and latitude, longitude first, and writes five of them as a character. At
precision p the globe has 2^⌈5p/2⌉ columns, the first at -180°, and 2^⌊5p/2⌋ rows, the first at -90°: a cell of
precision 5 is 4.9 km high.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ALPHABET = np.frombuffer(b"0123456789bcdefghjkmnpqrstuvwxyz", np.uint8)
Integers = npt.NDArray[np.int64]


def columns(precision: int) -> int:
    """How many columns the grid has; column 0 follows the last."""
    return 1 << (5 * precision + 1) // 2


def encode(x: Integers, y: Integers, precision: int) -> list[str]:
    """The geohashes of cells (N,)."""
    bits = np.zeros((len(x), 5 * precision), np.int64)
    for first, place in ((0, x), (1, y)):
        width = len(range(first, bits.shape[1], 2))
        bits[:, first::2] = place[:, None] >> np.arange(width)[::-1] & 1
    characters = ALPHABET[bits.reshape(len(x), precision, 5) @ (1 << np.arange(5)[::-1])]
    return [text.decode() for text in np.ascontiguousarray(characters).view(f"S{precision}").ravel().tolist()]


def decode(texts: Sequence[str], precision: int) -> tuple[Integers, Integers]:
    """Columns and rows (N,) of the cells in which places lie; -1 for a text that is no geohash of this precision or a
    finer one."""
    digits = np.full(256, -1)
    digits[ALPHABET] = np.arange(32)
    fixed = [text.encode()[:precision].ljust(precision) for text in texts]
    number = digits[np.frombuffer(b"".join(fixed), np.uint8).reshape(len(texts), precision)]
    whole = np.array([set(text.encode()) <= set(ALPHABET.tolist()) for text in texts], bool)
    bits = (number[:, :, None] >> np.arange(5)[::-1] & 1).reshape(len(texts), 5 * precision)
    valid = whole & (number >= 0).all(axis=1)
    x, y = (bits[:, first::2] @ (1 << np.arange(bits[:, first::2].shape[1])[::-1]) for first in (0, 1))
    return np.where(valid, x, -1), np.where(valid, y, -1)
