"""Shuffled batches out of core: row groups of the days' files in random order, a few of them mixed at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from pipeline.features.store import FeatureStore, Rows, read_group, row_groups
from pipeline.ranking.batches import Batch, Encoder, to_device


def streamed(
    store: FeatureStore,
    encoder: Encoder,
    slice_name: str,
    *,
    size: int,
    seed: int,
    mixed: int = 8,
    device: torch.device | str = "cpu",
) -> Callable[[int], Iterator[Batch]]:
    """Batches of `size` rows of a slice, each row once an epoch, in an order that depends on seed and epoch alone.

    The rows of `mixed` row groups are shuffled together, so a batch holds rows of that many; the next ones are read
    meanwhile.
    """
    first, last = {"train": ("begin", "validation"), "validation": ("validation", "test"), "test": ("test", "end")}[
        slice_name
    ]
    begin, end = store.slices[first], store.slices[last]
    groups = [group for group in row_groups(store.folder) if group.begin < end and group.end > begin]

    def read(chosen: npt.NDArray[np.int64]) -> list[Rows]:
        parts = [store.decode(read_group(groups[number])) for number in chosen]
        return [part.take((part.time >= begin) & (part.time < end)) for part in parts]

    def epoch(number: int) -> Iterator[Batch]:
        random = np.random.default_rng([seed, number])
        order = random.permutation(len(groups))
        pools = [order[place : place + mixed] for place in range(0, len(order), mixed)]
        left: list[Rows] = []
        with ThreadPoolExecutor(max_workers=1) as ahead:
            waiting = ahead.submit(read, pools[0])
            for following in [*pools[1:], None]:
                rows = Rows.concatenate([*left, *waiting.result()])
                if following is not None:
                    waiting = ahead.submit(read, following)
                chosen = torch.from_numpy(random.permutation(len(rows)))
                whole = len(rows) if following is None else len(rows) // size * size
                for first_row in range(0, whole, size):
                    yield to_device(encoder(rows, chosen[first_row : min(first_row + size, whole)]), device)
                left = [rows.take(chosen[whole:].numpy())]

    return epoch
