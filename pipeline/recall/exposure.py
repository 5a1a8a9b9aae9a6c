"""R21, the exposure filter: what a user was shown lately is not recalled again.

Bloom filters (Bloom, 1970) of (user, item) keys, one for each day. A filter of pairs answers as a filter per user
would, since the user is part of the key, and it takes room for the impressions there are rather than for the most
that a user may have. Each day the oldest window is dropped. Each window has room for the impressions of all, so that
they can be asked at once, as their union. No shown pair is ever missed; one that was not shown is taken for one at
about the rate `error` while the windows together hold no more than `capacity` pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from pathlib import Path

import numpy as np
import polars as pl
from rbloom import Bloom

from pipeline.recall.snapshot import DAY, Snapshot


@dataclass(frozen=True)
class Exposure:
    """One window per day: `windows[d]` holds what was shown on the day number `first` + d."""

    windows: tuple[Bloom, ...]
    first: int
    capacity: int
    error: float

    @property
    def since(self) -> int:
        """The time (µs) from which on impressions are remembered."""
        return self.first * DAY

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each of N pairs was shown: a mask (N,). User 0 stands for nobody, so nothing was shown to it."""
        keys = pair_keys(users, items)
        found = np.fromiter(map(self._shown.__contains__, keys.tolist()), dtype=bool, count=len(keys))
        return found & (np.asarray(users) > 0)

    def add(self, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> Exposure:
        """The filter after N more impressions; when these reach a later day the oldest windows are dropped for it."""
        days = np.asarray(times) // DAY
        last = max(int(days.max(initial=0)), self.first + len(self.windows) - 1)
        first = last - len(self.windows) + 1
        kept = [window.copy() for window in self.windows[first - self.first :]]
        windows = kept + [Bloom(self.capacity, self.error, int) for _ in self.windows[len(kept) :]]
        keys = pair_keys(users, items)
        for number, window in enumerate(windows):
            window.update(keys[days == first + number].tolist())
        return Exposure(tuple(windows), first, self.capacity, self.error)

    @cached_property
    def _shown(self) -> Bloom:
        return reduce(or_, self.windows)

    def save(self, folder: Path) -> None:
        told = {"first": self.first, "windows": len(self.windows), "capacity": self.capacity, "error": self.error}
        (folder / "exposure.json").write_text(json.dumps(told))
        for number, window in enumerate(self.windows):
            (folder / f"exposure_{number}.bloom").write_bytes(window.save_bytes())


def load(folder: Path) -> Exposure:
    told = json.loads((folder / "exposure.json").read_text())
    windows = [
        Bloom.load_bytes((folder / f"exposure_{number}.bloom").read_bytes(), int) for number in range(told["windows"])
    ]
    return Exposure(tuple(windows), told["first"], told["capacity"], told["error"])


def fit(snapshot: Snapshot, folder: Path, *, days: float, error: float) -> Exposure:
    """Write and return the filter of what was shown in the last `days` before the snapshot.

    Windows are calendar days (UTC), so that up to a day more than `days` is remembered.
    """
    last = (snapshot.time - 1) // DAY
    first = (snapshot.time - round(days * DAY)) // DAY
    shown = lately(snapshot, first * DAY)
    exposure = empty(last - first + 1, first, capacity=max(1, len(shown)), error=error)
    exposure = exposure.add(*(shown[name].to_numpy() for name in ("user", "item", "time")))
    exposure.save(folder)
    return exposure


def lately(snapshot: Snapshot, since: int) -> pl.DataFrame:
    """What known users were shown from a time (µs) on."""
    return snapshot.interactions.filter((pl.col("time") >= since) & (pl.col("user") > 0))


def empty(windows: int, first: int, *, capacity: int, error: float) -> Exposure:
    """A filter of `windows` days from day number `first`, with room for `capacity` impressions in all.

    A pair's key is already a stable and well-mixed hash, so that the Bloom filter's own hash function is the identity.
    """
    return Exposure(tuple(Bloom(capacity, error, int) for _ in range(windows)), first, capacity, error)


def false_positive_rate(exposure: Exposure, shown: pl.DataFrame, *, sample: int = 200_000, seed: int = 0) -> float:
    """Share of random pairs of shown users and shown items, themselves not in `shown`, which the filter takes."""
    if shown.is_empty():
        return 0.0
    generator = np.random.default_rng(seed)
    users, items = (generator.choice(shown[name].to_numpy(), sample) for name in ("user", "item"))
    drawn = pl.DataFrame({"user": users, "item": items}).join(shown, on=["user", "item"], how="anti")
    drawn = drawn.filter(pl.col("user") > 0)
    return float(exposure.contains(drawn["user"].to_numpy(), drawn["item"].to_numpy()).mean()) if len(drawn) else 0.0


def pair_keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Stable 64-bit hashes of N pairs of numbers below 2³², by SplitMix64's finaliser (Steele, Lea & Flood, 2014)."""
    bits = np.asarray(first).astype(np.uint64) << np.uint64(32) | np.asarray(second).astype(np.uint64)
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
