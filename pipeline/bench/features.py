"""Statistics as of each row: the sorted-array kernel against polars' rolling sums on the same events."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl

from pipeline.bench.measure import seconds
from pipeline.features.statistics import Counter, as_of

DAY = 86_400_000_000


def bench(events: int = 300_000, keys: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Impressions and clicks per key over one day, as of each row. Fails unless both give equal counts."""
    generator = np.random.default_rng(seed)
    key = generator.zipf(1.3, events) % keys
    time = np.sort(generator.integers(0, 14 * DAY, events))
    values = np.stack([np.ones(events, np.int64), generator.random(events) < 0.2], axis=1).astype(np.int64)

    def ours() -> np.ndarray:
        return as_of(Counter.of(key, time, values), key, time, ("1d",))[:, 0]

    frame = pl.DataFrame({"key": key, "time": time, "shows": values[:, 0], "clicks": values[:, 1]})
    frame = frame.with_columns(pl.col("time").cast(pl.Datetime("us")))

    def polars() -> np.ndarray:
        window = timedelta(days=1)
        return frame.select(
            pl.col(name).rolling_sum_by("time", window_size=window, closed="left").over("key").fill_null(0)
            for name in ("shows", "clicks")
        ).to_numpy()

    if not np.array_equal(ours(), polars()):
        raise AssertionError("the two engines disagree")
    own, rival = seconds(ours), seconds(polars)
    return {
        "events": events,
        "rows_per_second": events / own,
        "polars_rows_per_second": events / rival,
        "ratio_to_polars": rival / own,
    }
