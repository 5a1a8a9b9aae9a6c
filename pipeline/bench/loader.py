"""Rows a second of the loader alone: a slice's records encoded once, then shuffled batches of them from disk."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

from pipeline.bench.market import features_of
from pipeline.config import Features, Fine
from pipeline.features.store import FeatureStore
from pipeline.ranking.batches import Batch, Encoder
from pipeline.ranking.stream import shuffled
from pipeline.ranking.training import prepared

FORTY = Features(
    item=("author_id", "category"),
    statistics=("user", "item", "author_id", "category"),
    windows=("1d", "all"),
    behaviours={},
)

TAKEN_AS_IT_IS = Fine()


def bench(
    rows: int = 300_000, batch_size: int = 4_096, block: int = 4_096, mixed: int = 16, runs: int = 3, seed: int = 0
) -> dict[str, float]:
    """Of 40 columns without histories and, as `funnel_…`, of the funnel's own features with two.

    `encode_` is what writing the records takes, once, features and labels read; `stream_` an epoch of them, which the
    system's cache has dropped before, so that they are read from the disk. Columns are fields, numbers and labels, MiB
    the records' bytes. `stream_peak_mib` is what the epochs hold at most beside the store, in a process of
    their own: two windows of `window_mib`, and batches.
    """
    figures: dict[str, float] = {}
    for prefix, features in (("", FORTY), ("funnel_", Features())):
        with (
            features_of(users=rows // 10, items=rows // 50, impressions=rows, seed=seed, features=features) as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
        ):
            store = FeatureStore.open(folder)
            encoder = Encoder(store)
            begun = time.perf_counter()
            stored = prepared(store, encoder, TAKEN_AS_IT_IS, seed).stored
            encoding = time.perf_counter() - begun
            seconds, events, peak = process.submit(_stream, folder, batch_size, block, mixed, runs, seed).result()
            count = len(stored)
        schema, width = store.schema, stored.kind.itemsize
        told = {
            "rows": count,
            "columns": len(schema.fields) + len(schema.numbers) + len(schema.labels),
            "events_per_row": events / count,
            "encode_rows_per_second": count / encoding,
            "stream_rows_per_second": count / seconds,
            "stream_mib_per_second": count * width / 2**20 / seconds,
            "window_mib": (batch_size + block * mixed) * width / 2**20,
            "stream_peak_mib": peak,
        }
        figures |= {f"{prefix}{name}": value for name, value in told.items()}
    return figures


def _stream(folder: Path, batch_size: int, block: int, mixed: int, runs: int, seed: int) -> tuple[float, int, float]:
    """Seconds of an epoch of records, the events of its histories, and the MiB that it took at most."""
    store = FeatureStore.open(folder)
    encoder = Encoder(store)
    stored = prepared(store, encoder, TAKEN_AS_IT_IS, seed).stored
    epoch = shuffled(encoder, stored, size=batch_size, seed=seed, block=block, mixed=mixed)
    held = _peak_mib()
    return *_epochs(epoch, runs, lambda: _drop(stored.path)), _peak_mib() - held


def _epochs(epoch: Callable[[int], Iterable[Batch]], runs: int, before: Callable[[], None]) -> tuple[float, int]:
    """Median seconds of some epochs after one that is not counted, and the events of one."""
    taken = []
    for number in range(runs + 1):
        before()
        begun = time.perf_counter()
        events = sum(len(batch[name]) for batch in epoch(number) for name in batch if name.endswith(".row"))
        taken.append(time.perf_counter() - begun)
    return median(taken[1:]), events


def _drop(path: Path) -> None:
    """Take a file out of the system's cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak_mib() -> float:
    """The most that this process has held so far. A process counts as its own what the one that started it held, but
    where Linux tells it of its own pages."""
    if (status := Path("/proc/self/status")).exists():
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(told["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
