"""A planted world in which histories tell what is wanted next, for the tests of trained recall routes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from event_tables import DAY, START

from pipeline import config
from pipeline.features import build

GROUPS, ITEMS, USERS = 4, 240, 160
CONTRACT = config.Contract(tasks=("click",))
FEATURES = config.Features(
    user=(),
    item=("category",),
    statistics=("item",),
    windows=("all",),
    rates=("click",),
    behaviours={"clicked": "click"},
    length=8,
    admit_after=1,
)


def planted(folder: Path, *, seed: int = 0, content: bool = True, blank: int = 0) -> Path:
    """The features of a log in which user u clicks on what is of group u mod `GROUPS`, as item i is of group i mod
    `GROUPS`, and on nothing else; content, where there is any, lies around a direction for each group, and is 0 for the
    first `blank` items."""
    random = np.random.default_rng(seed)
    events, out = folder / "events", folder / "features"
    events.mkdir(parents=True)
    out.mkdir()
    user = np.repeat(np.arange(USERS), 20)
    own = random.random(len(user)) < 0.7
    item = np.where(
        own,
        random.integers(0, ITEMS // GROUPS, len(user)) * GROUPS + user % GROUPS,
        random.integers(0, ITEMS, len(user)),
    )
    log = pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "domain": random.choice(["home", "live"], len(user)),
            "time": START + random.integers(0, 10 * DAY, len(user)),
            "shown": True,
            "random": False,
            "click": (item % GROUPS == user % GROUPS).astype(np.int8),
        }
    )
    log.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC"))).sort("time", "user_id", "item_id").write_parquet(
        events / "events.parquet"
    )
    group = np.arange(ITEMS) % GROUPS
    items = pl.DataFrame(
        {
            "item_id": np.arange(ITEMS),
            "published": pl.Series([START - DAY] * ITEMS).cast(pl.Datetime("us", "UTC")),
            "category": [f"c{number % 2}" for number in group],
        }
    )
    if content:
        vectors = np.eye(GROUPS)[group] + 0.1 * random.normal(size=(ITEMS, GROUPS))
        vectors[:blank] = 0.0
        column = pl.Series(vectors.astype(np.float32), dtype=pl.Array(pl.Float32, GROUPS))
        items = items.with_columns(content=column)
    items.write_parquet(events / "items.parquet")
    pl.DataFrame({"user_id": np.arange(USERS)}).write_parquet(events / "users.parquet")
    build.build(events, out, features=FEATURES, contract=CONTRACT, split=config.Split())
    return out


def groups(features: Path, table: str) -> np.ndarray:
    """The group of every row of "users" or "items", -1 for the unknown one."""
    ids = pl.read_parquet(features / f"{table}.parquet")[f"{table[:-1]}_id"]
    return (ids % GROUPS).fill_null(-1).to_numpy()
