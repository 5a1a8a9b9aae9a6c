"""Raw events to features as of each row: the library's kernels against DuckDB and two ways to do it in pandas."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.bench import feature_rivals
from pipeline.bench.feature_job import (
    ADMIT_AFTER,
    CATEGORIES,
    ENTITIES,
    LENGTH,
    NUMBERS,
    PARTS,
    PRIOR,
    SIDES,
    WINDOWS,
    Result,
    check_equal,
    write_events,
)
from pipeline.bench.measure import seconds
from pipeline.features import identity, numeric, sequences, statistics
from pipeline.features.statistics import Counter
from pipeline.features.timeline import Integers, Timeline


def bench(
    events: int = 1_000_000, rolling_events: int = 200_000, threads: int = 2, runs: int = 3, seed: int = 0
) -> dict[str, float]:
    """Medians of `runs`, and how many times as long the rivals take an event; fails unless all agree on every row.

    `pandas_asof` is the quickest way known in pandas, running totals looked up by `merge_asof`; `pandas_rolling` the
    documented one, `groupby().rolling(closed="left")`, so slow that it has `rolling_events` only.
    """
    rivals: dict[str, tuple[int, Callable[[Path], Result]]] = {}
    if find_spec("duckdb"):
        rivals["duckdb"] = events, lambda path: feature_rivals.duckdb(path, threads)
    if find_spec("pandas"):
        rivals["pandas_asof"] = events, feature_rivals.pandas_asof
        rivals["pandas_rolling"] = min(events, rolling_events), feature_rivals.pandas_rolling
    results: dict[str, Result] = {}

    def timed(name: str, job: Callable[[], Result]) -> float:
        def once() -> None:
            results.pop(name, None)
            results[name] = job()

        return seconds(once, runs)

    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        paths = {size: Path(place) / f"{size}.parquet" for size in {events, *(size for size, _ in rivals.values())}}
        for size, path in paths.items():
            write_events(path, size, seed)
        own = timed("ours", lambda: ours(paths[events], threads))
        figures = {
            "events": events,
            "seconds": own,
            "events_per_second": events / own,
            "peak_gib": getrusage(RUSAGE_SELF).ru_maxrss / 2**20,
        }
        for name, (size, job) in rivals.items():
            path = paths[size]
            rival = timed(name, lambda job=job, path=path: job(path))  # type: ignore[misc]
            check_equal(results["ours"] if size == events else ours(path, threads), results.pop(name))
            figures |= {f"{name}_events_per_second": size / rival, f"ratio_to_{name}": (rival / size) / (own / events)}
    return figures


def ours(path: Path, threads: int) -> Result:
    """The job by the functions that build the funnel's features."""
    with ThreadPoolExecutor(threads) as pool:
        events = pl.read_parquet(path, columns=["time", "user", "item", "category", "click", *NUMBERS])
        time, click = events["time"].to_physical().to_numpy(), events["click"].to_numpy()
        values = np.stack([np.ones(len(time), np.int8), click], axis=1)

        def code(side: str) -> tuple[pl.Series, Integers, npt.NDArray[np.int32]]:
            ids, rows = identity.distinct(events[side])
            seen = (
                pl.DataFrame({"row": rows, "time": time})
                .group_by("row")
                .agg(pl.len().alias("count"), pl.col("time").max().alias("last_seen"))
            )
            seen = seen.select(ids.gather(seen["row"]).alias("value"), "count", "last_seen")
            vocabulary = identity.fit(side, seen, admit_after=ADMIT_AFTER, evict_before=0)
            return ids, rows.astype(np.int64), vocabulary.encode(ids).to_numpy()[rows]

        def bucket(name: str) -> npt.NDArray[np.int32]:
            numbers = events[name].to_numpy()
            return numeric.bucket(numbers, numeric.fit_quantiles(numbers, PARTS))

        def count(keys: Integers) -> npt.NDArray[np.float32]:
            return statistics.features(Counter.of(keys, time, values), keys, time, WINDOWS, [PRIOR])

        def history(users: Integers, items: Integers) -> tuple[Integers, Integers, npt.NDArray[np.int32]]:
            clicked = np.flatnonzero(click)
            behaviour = Timeline.of(users[clicked], time[clicked])
            return (items[clicked[behaviour.order]], *sequences.pointers(behaviour, users, time, LENGTH))

        cut = {name: pool.submit(bucket, name) for name in NUMBERS}
        coded = {side: pool.submit(code, side) for side in SIDES}
        (_, user, _), (items, item, _) = (coded[side].result() for side in SIDES)
        category = events["category"].to_numpy().astype(np.int64)
        keys = {"user": user, "item": item, "category": category, "user+category": user * CATEGORIES + category}
        counted = {entity: pool.submit(count, keys[entity]) for entity in ENTITIES}
        packed, ends, lengths = pool.submit(history, user, item).result()
    return Result(
        statistics=lambda entity: counted[entity].result(),
        codes=lambda side: coded[side].result()[2],
        buckets=lambda name: cut[name].result(),
        history=lambda rows: [items.gather(packed[ends[row] - lengths[row] : ends[row]]).to_list() for row in rows],
    )
