"""A simulated market with its features, made once in a temporary folder for the benchmarks that need a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import lake
from pipeline.config import Contract, Features, Simulator, Split
from pipeline.features import build
from pipeline.sources import contract

DEFAULT = Features()


@contextmanager
def features_of(*, users: int, items: int, impressions: int, seed: int, features: Features = DEFAULT) -> Iterator[Path]:
    """The folder of a market's features, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        events, made = Path(place) / "events", lake.stage(Path(place), "features", "bench")
        events.mkdir()
        source = Simulator(users=users, items=items, impressions=impressions, seed=seed)
        contract.write_events(source, Contract(), events)
        with made.writing() as folder:
            build.build(events, folder, features=features, contract=Contract(), split=Split())
        yield made.path
