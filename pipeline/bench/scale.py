"""Features of a log of any size: seconds per million events, and the memory that a machine needs for it."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from pipeline.config import Contract, Features, Split
from pipeline.features import build

START = 1_700_006_400_000_000
DAY = 86_400_000_000
DOMAINS = ("home", "live", "search")
PIECE = 1 << 20
FEATURES = Features(
    user=("segment",), item=("author_id", "category"), rates=("click",), behaviours={"clicked": "click"}
)
CONTRACT = Contract(tasks=("click",))


def bench(events: int = 1_000_000, days: int = 60, parts: int = 8, seed: int = 0) -> dict[str, float]:
    """From an events folder, as the contract leaves it, to a features folder, one job after the other.

    There is one user to 50 events, one item to 500, and every item's share of the log falls with its rank (Zipf).
    """
    with tempfile.TemporaryDirectory(prefix="recfunnel-scale-") as place:
        raw, out = Path(place) / "events", Path(place) / "features"
        begun = time.perf_counter()
        simulate(raw, events=events, days=days, seed=seed)
        simulated, worked = time.perf_counter(), time.process_time()
        out.mkdir()
        settings = Features(**{**vars(FEATURES), "parts": parts})
        told = build.build(raw, out, features=settings, contract=CONTRACT, split=Split())
        seconds = time.perf_counter() - simulated
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        return {
            "events": events,
            "rows": sum(told[f"rows_{name}"] for name in ("train", "validation", "test")),
            "columns": told["numbers"] + told["fields"] + len(CONTRACT.tasks),
            "simulation_seconds": simulated - begun,
            "seconds": seconds,
            "seconds_per_million": seconds / events * 1e6,
            "processor_seconds_per_million": (time.process_time() - worked) / events * 1e6,
            "peak_memory_gib": peak_memory(),
            "bytes_per_row": size / events,
            "free_disk_gib": shutil.disk_usage(place).free / 2**30,
        }


def peak_memory() -> float:
    """GiB that this process and the greatest of its children have held at most."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


def simulate(folder: Path, *, events: int, days: int, seed: int) -> None:
    """Write an events folder, day by day."""
    random = np.random.default_rng(seed)
    users, items = max(events // 50, 10), max(events // 500, 10)
    folder.mkdir()
    liked = random.beta(2, 8, items)
    names = random.permutation(items)
    writer = None
    for day in range(days):
        rows = events // days + (day < events % days)
        item = names[zipf(random.random(rows), items)]
        table = pl.DataFrame(
            {
                "user_id": (users * random.random(rows) ** 1.5).astype(np.int64) + 1_000_000_007,
                "item_id": item.astype(np.int64),
                "domain": pl.Series(random.choice(3, rows, p=(0.6, 0.3, 0.1))).replace_strict(
                    dict(enumerate(DOMAINS)), return_dtype=pl.String
                ),
                "time": START + day * DAY + np.sort(random.integers(0, DAY, rows)),
                "shown": np.ones(rows, np.bool_),
                "random": np.zeros(rows, np.bool_),
                "click": (random.random(rows) < liked[item]).astype(np.int8),
            }
        ).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
        arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(folder / "events.parquet", arrow.schema, compression="zstd")
        writer.write_table(arrow, row_group_size=PIECE)
    assert writer is not None
    writer.close()
    author = random.integers(0, max(items // 10, 1), items)
    category = [f"c{number}" for number in random.integers(0, 100, items)]
    published = pl.Series(START + random.integers(-days, days, items) * DAY).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame(
        {"item_id": np.arange(items), "published": published, "author_id": author, "category": category}
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": np.arange(users) + 1_000_000_007, "segment": random.integers(0, 20, users)}).write_parquet(
        folder / "users.parquet"
    )


def zipf(uniform: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Ranks 0 … count - 1 whose probability falls as 1 / (rank + 1), nearly: the inverse of a logarithmic law."""
    ranks: npt.NDArray[np.int64] = np.minimum(np.exp(uniform * np.log(count + 1)) - 1, count - 1).astype(np.int64)
    return ranks
