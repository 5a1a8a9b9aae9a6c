"""A small events folder, as a source writes it, for the tests of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipeline import config

START = 1_700_000_000_000_000
MINUTE = 60_000_000
DAY = 86_400_000_000
TASKS = ("click", "like", "convert")
DOMAINS = ("home", "live", "search")
FEATURES = config.Features(
    user=("segment", "age"),
    item=("author_id", "category", "tag"),
    numbers={"price": "cdf", "income": "log1p", "width": "bucket"},
    statistics=("user", "item", "author_id", "segment", "domain", "user+category", "item+domain"),
    rates=("click", "convert"),
    behaviours={"clicked": "click", "converted": "convert"},
    length=6,
    buckets=4,
)
CONTRACT = config.Contract(tasks=TASKS)


def write_events(
    folder: Path, *, events: int = 3_000, users: int = 200, items: int = 100, days: int = 10, seed: int = 0
) -> Path:
    """Coarse timestamps (many ties), delayed conversions, unseen users and items, nulls, and a prior history."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    times = START + np.sort(random.integers(0, days * 24 * 60, events)) * MINUTE
    click = random.random(events) < 0.25
    convert = click & (random.random(events) < 0.5)
    delay = random.integers(1, 600, events) * MINUTE
    pl.DataFrame(
        {
            "user_id": random.integers(0, users - 5, events),
            "item_id": [f"i{number}" for number in (items * random.random(events) ** 2).astype(int)],
            "domain": np.array(DOMAINS)[random.integers(0, 3, events)],
            "time": times,
            "shown": random.random(events) < 0.99,
            "random": random.random(events) < 0.03,
            "click": click.astype(np.int8),
            "like": (click & (random.random(events) < 0.4)).astype(np.int8),
            "convert": convert.astype(np.int8),
            "convert_time": pl.Series(times + delay).set(pl.Series(~convert), None),
            "position": random.integers(1, 30, events).astype(np.int16),
            "device": np.array(["phone", "web", "tv"])[random.integers(0, 3, events)],
        }
    ).with_columns(pl.col("time", "convert_time").cast(pl.Datetime("us", "UTC"))).sort(
        "time", "user_id", "item_id"
    ).write_parquet(folder / "events.parquet")
    published = pl.Series(START + random.integers(-days, days, items) * DAY).set(
        pl.Series(random.random(items) < 0.1), None
    )
    pl.DataFrame(
        {
            "item_id": [f"i{number}" for number in range(items)],
            "published": published.cast(pl.Datetime("us", "UTC")),
            "author_id": pl.Series(random.integers(0, items // 5, items)).set(
                pl.Series(random.random(items) < 0.1), None
            ),
            "category": random.integers(0, 8, items).astype(str),
            "tags": [[str(number % 7), "x"] for number in range(items)],
            "tag": [str(number % 7) for number in range(items)],
            "price": random.lognormal(size=items),
            "width": random.integers(0, 50, items),
            "content": pl.Series(random.normal(size=(items, 4)).astype(np.float32), dtype=pl.Array(pl.Float32, 4)),
        }
    ).sort("item_id").write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {
            "user_id": np.arange(users),
            "segment": random.integers(0, 5, users).astype(str),
            "age": random.integers(0, 8, users),
            "income": random.lognormal(5, size=users),
        }
    ).write_parquet(folder / "users.parquet")
    prior = users * 3
    pl.DataFrame(
        {
            "user_id": random.integers(0, users, prior),
            "item_id": [f"i{number}" for number in random.integers(0, items, prior)],
            "behaviour": "click",
            "time": pl.Series(START - random.integers(1, days, prior) * DAY).cast(pl.Datetime("us", "UTC")),
            "rank": np.arange(prior, dtype=np.int32),
        }
    ).write_parquet(folder / "history.parquet")
    return folder
