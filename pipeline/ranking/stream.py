"""Shuffled batches out of core. What a model reads of a slice's rows is encoded once, into a file of records of one
width beside the features, of which any run of rows is one read; an epoch reads blocks of it in random order and mixes
the rows of a window of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models import processes
from pipeline import lake
from pipeline.features.store import FeatureStore, Rows, read_group, row_groups
from pipeline.progress import progress
from pipeline.ranking.batches import Batch, Encoder, Records, layout, to_device

FILE = "records.bin"


def streamed(
    store: FeatureStore,
    encoder: Encoder,
    slice_name: str,
    *,
    size: int,
    seed: int,
    block: int = 1 << 12,
    mixed: int = 1 << 6,
    device: torch.device | str = "cpu",
) -> Callable[[int], Iterator[Batch]]:
    """Batches of `size` rows of a slice, each row once an epoch, in an order that depends on seed and epoch alone.

    The rows of a window of `mixed` blocks, of `block` successive rows each, are shuffled together. The next window is
    read meanwhile: two are in memory. Of several processes each reads all of them, and has its part of every batch;
    fewer rows than processes at an epoch's end are left out of it.
    """
    path = recorded(store, encoder, slice_name)
    kind = layout(encoder.schema)
    rows = path.stat().st_size // kind.itemsize
    blocks = -(-rows // block)

    def read(chosen: npt.NDArray[np.int64], window: Records) -> int:
        """Fill the window from its row `size` on; returns where the rows end."""
        end = size
        with path.open("rb", buffering=0) as file:
            for begin in (chosen * block).tolist():
                part = window[end : end + min(block, rows - begin)]
                file.seek(begin * kind.itemsize)
                file.readinto(part.view(np.uint8).data)
                end += len(part)
        return end

    def epoch(number: int) -> Iterator[Batch]:
        random = np.random.default_rng([seed, number])
        order = random.permutation(blocks)
        pools = [order[place : place + mixed] for place in range(0, blocks, mixed)]
        window, following = (np.empty(size + mixed * block, kind) for _ in range(2))
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


def recorded(store: FeatureStore, encoder: Encoder, slice_name: str) -> Path:
    """The file of a slice's records (`layout`), found beside the features folder or written there, by the first of
    several processes; those of other features are removed, since they are as large as the log."""
    print_ = lake.fingerprint(rows_of, inputs=[store.folder], slice=slice_name)
    place = lake.stage(store.folder.parent, f"records_{slice_name}", print_)
    if not place.done and processes.place() == 0:
        for other in store.folder.parent.glob(f"records_{slice_name}-*"):
            shutil.rmtree(other, ignore_errors=True)
        with place.writing() as folder, (folder / FILE).open("wb") as file:
            for rows in rows_of(store, slice_name):
                encoder.records(rows).tofile(file)
    processes.wait()
    return place.path / FILE


def rows_of(store: FeatureStore, slice_name: str) -> Iterator[Rows]:
    """The rows of a slice, those of a row group of the days' files at a time."""
    first, last = {"train": ("begin", "validation"), "validation": ("validation", "test"), "test": ("test", "end")}[
        slice_name
    ]
    begin, end = store.slices[first], store.slices[last]
    groups = [group for group in row_groups(store.folder) if group.begin < end and group.end > begin]
    for group in progress(groups, f"records of {slice_name}"):
        rows = store.decode(read_group(group))
        yield rows.take((rows.time >= begin) & (rows.time < end))
