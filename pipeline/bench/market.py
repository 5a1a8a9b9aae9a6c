"""A simulated market with its features, made once in a temporary folder for the benchmarks that need a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import Contract, Features, Simulator, Split
from pipeline.features import build
from pipeline.sources import contract


@contextmanager
def features_of(*, users: int, items: int, impressions: int, seed: int) -> Iterator[Path]:
    """The folder of a market's features, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        events, features = Path(place) / "events", Path(place) / "features"
        events.mkdir()
        features.mkdir()
        source = Simulator(users=users, items=items, impressions=impressions, seed=seed)
        contract.write_events(source, Contract(), events)
        build.build(events, features, features=Features(), contract=Contract(), split=Split())
        yield features
