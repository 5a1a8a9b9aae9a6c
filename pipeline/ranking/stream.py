"""Shuffled batches out of core. Rows are encoded once, into a file of records of one width, of which any run of rows is
one read; an epoch reads blocks of it in random order and mixes the rows of a window of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models import processes
from pipeline.ranking.batches import Batch, Encoder, Records, to_device


@dataclass(frozen=True)
class Stored:
    """Records of one kind, one after another in a file."""

    path: Path
    kind: np.dtype[np.void]

    @classmethod
    def write(cls, path: Path, parts: Iterable[Records]) -> Stored:
        """Write records part by part. Raises ValueError where there is no part."""
        kind = None
        with path.open("wb") as file:
            for part in parts:
                kind = part.dtype
                part.tofile(file)
        if kind is None:
            raise ValueError(f"{path}: there is nothing to write")
        return cls(path, kind)

    def __len__(self) -> int:
        return self.path.stat().st_size // self.kind.itemsize

    def parts(self, size: int) -> Iterator[Records]:
        """All records in order, so many at a time."""
        with self.path.open("rb") as file:
            while len(part := np.fromfile(file, self.kind, size)):
                yield part


def shuffled(
    encoder: Encoder,
    stored: Stored,
    *,
    size: int,
    seed: int,
    block: int = 1 << 10,
    mixed: int = 1 << 8,
    device: torch.device | str = "cpu",
) -> Callable[[int], Iterator[Batch]]:
    """Batches of `size` rows, each row once an epoch, in an order that depends on seed and epoch alone.

    The rows of a window of `mixed` blocks, of `block` successive rows each, are shuffled together. The next window is
    read meanwhile: two are in memory. Of several processes each reads all of them, and has its part of every batch;
    fewer rows than processes at an epoch's end are left out of it.
    """
    kind, rows = stored.kind, len(stored)
    blocks = -(-rows // block)

    def read(chosen: npt.NDArray[np.int64], window: Records) -> int:
        """Fill the window from its row `size` on; returns where the rows end."""
        end = size
        with stored.path.open("rb", buffering=0) as file:
            for begin in (chosen * block).tolist():
                part = window[end : end + min(block, rows - begin)]
                file.seek(begin * kind.itemsize)
                _fill(file, part)
                end += len(part)
        return end

    def epoch(number: int) -> Iterator[Batch]:
        random = np.random.default_rng([seed, number])
        order = random.permutation(blocks)
        pools = [order[place : place + mixed] for place in range(0, blocks, mixed)]
        window, following = (np.empty(size + min(mixed * block, rows), kind) for _ in range(2))
        begin = size
        with ThreadPoolExecutor(max_workers=1) as ahead:
            waiting = ahead.submit(read, pools[0], window)
            for place in range(len(pools)):
                end = waiting.result()
                last = place + 1 == len(pools)
                if not last:
                    waiting = ahead.submit(read, pools[place + 1], following)
                chosen = begin + random.permutation(end - begin)
                whole = len(chosen) if last else len(chosen) // size * size
                for first in range(0, whole, size):
                    own = np.array_split(chosen[first : first + size], processes.count())
                    if len(own[-1]):
                        yield to_device(encoder.batch(window.take(own[processes.place()])), device)
                left = chosen[whole:]
                begin = size - len(left)
                following[begin:size] = window.take(left)
                window, following = following, window

    return epoch


def _fill(file: Any, part: Records) -> None:
    """Read records until the array is full; a single read has at most 2 GiB."""
    into = part.view(np.uint8).data
    while len(into) and (got := file.readinto(into)):
        into = into[got:]
    if len(into):
        raise OSError(f"{file.name}: ends in the middle of a block; it was cut off or written to meanwhile")
