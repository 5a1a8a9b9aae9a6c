"""Histories as the routes read them that are trained on what users did next: ranges of one array of events.

The same ranges serve the training rows, each with what its user did strictly before, and the requests of a route.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from models.schema import Schema
from pipeline.features.store import FeatureStore
from pipeline.ranking.batches import Batch, entity_codes
from pipeline.recall.route import Found, Requests
from pipeline.recall.sampling import Sampler
from pipeline.recall.snapshot import Snapshot, take
from pipeline.recall.two_tower import VALIDATION_USERS

NO_ITEM = 0
COLUMNS = [pl.col("user", "item").cast(pl.Int32), pl.col("domain").cast(pl.Int16), pl.col("time")]


@dataclass(frozen=True)
class Histories:
    """R histories: row r's are `items[begin[r]:end[r]]`, oldest first; `user` (R,), 0 = unknown, and `domain` (R,),
    -1 = unknown, say whose each is and where."""

    items: npt.NDArray[np.int32]
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    user: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, requests: Requests) -> Histories:
        offsets = requests.offsets
        return cls(requests.items, offsets[:-1], offsets[1:], requests.user, requests.domain)

    @classmethod
    def before(cls, snapshot: Snapshot, rows: pl.DataFrame) -> Histories:
        """Of N rows (user, domain, time): what each user engaged with strictly before the time."""
        known = snapshot.history
        times = np.unique(known["time"].to_numpy())
        base = len(times) + 1
        key = known["user"].to_numpy() * np.int64(base) + np.searchsorted(times, known["time"].to_numpy())
        user = rows["user"].to_numpy().astype(np.int32)
        first = user * np.int64(base)
        return cls(
            items=known["item"].to_numpy(),
            begin=np.searchsorted(key, first),
            end=np.searchsorted(key, first + np.searchsorted(times, rows["time"].to_numpy())),
            user=user,
            domain=rows["domain"].to_numpy().astype(np.int16),
        )

    def take(self, index: npt.NDArray[Any] | slice) -> Histories:
        return Histories(self.items, self.begin[index], self.end[index], self.user[index], self.domain[index])

    def newest(self, length: int, size: int) -> npt.NDArray[np.int64]:
        """Each row's last `length` items (R, length), newest first, `NO_ITEM` where there are none; so are numbers that
        are not below `size`."""
        if not len(self.items):
            return np.full((len(self), length), NO_ITEM, np.int64)
        place = self.end[:, None] - 1 - np.arange(length)
        there = place >= self.begin[:, None]
        found = self.items[np.where(there, place, 0)].astype(np.int64)
        return np.where(there & (found < size), found, NO_ITEM)


def engagements(snapshot: Snapshot, newest: int) -> pl.DataFrame:
    """user, item, domain and time of the `newest` engagements of a snapshot, in order of time; those from before the
    log are of an unknown domain, -1."""
    begin = snapshot.store.slices["begin"]
    prior = snapshot.history.filter(pl.col("time") < begin).with_columns(domain=pl.lit(-1)).unique()
    rows = pl.concat([prior.select(COLUMNS), logged(snapshot)])
    return rows.sort("time", "user", "item", "domain").tail(newest)


def logged(snapshot: Snapshot) -> pl.DataFrame:
    """user, item, domain and time of the log's engagements of known users with known items."""
    known = (pl.col("user") > 0) & (pl.col("item") > 0)
    return snapshot.interactions.filter(pl.col("engaged") & known).select(COLUMNS)


def first_of_each_user(snapshot: Snapshot, begin: int, users: int, seed: int) -> pl.DataFrame:
    """The first engagement of the log from `begin` on of each of up to `users` users, drawn at random: user, item,
    domain, time."""
    rows = logged(snapshot).filter(pl.col("time") >= begin)
    rows = rows.sort("user", "time", "item").unique("user", keep="first", maintain_order=True)
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:users])]


def held_out(store: FeatureStore, positive: str, seed: int) -> tuple[Snapshot, Histories, npt.NDArray[np.int32]]:
    """What training is judged by: the first items that up to 2,000 users engaged with in the validation slice (R,),
    their histories before, and the snapshot at its end."""
    later = take(store, store.slices["test"], positive)
    rows = first_of_each_user(later, store.slices["validation"], VALIDATION_USERS, seed)
    return later, Histories.before(later, rows), rows["item"].to_numpy()


def sampler_of_all(item: npt.NDArray[np.integer], catalogue: npt.NDArray[np.integer], size: int) -> Sampler:
    """How items come into a batch of rows with these items (N,) of which none is left out, hot or not."""
    count = torch.from_numpy(np.bincount(item, minlength=size)).double()
    everything = torch.ones(size, dtype=torch.float64)
    return replace(Sampler.of(item, catalogue, size), positive=count / count.sum(), keep=everything)


def hit_share(found: Found, wanted: npt.NDArray[np.integer]) -> float:
    """Share of R requests that found the item `wanted` (R,); 0 when there is none."""
    return float((found.items == wanted[:, None]).any(axis=1).mean()) if len(wanted) else 0.0


@dataclass(frozen=True)
class Reader:
    """Histories as `models.state` reads them, and items as `models.state.ItemVectors` does."""

    users: torch.Tensor
    codes: torch.Tensor
    content: torch.Tensor
    length: int

    @classmethod
    def of(cls, store: FeatureStore, length: int) -> Reader:
        schema: Schema = store.schema
        codes = entity_codes(schema, "item", store.items)
        content = store.items.get("content", np.zeros((len(codes), 0)))
        known = torch.from_numpy(np.nan_to_num(content).astype(np.float32))
        return cls(entity_codes(schema, "user", store.users), codes, known, length)

    def __call__(self, histories: Histories) -> Batch:
        events = torch.from_numpy(histories.newest(self.length, len(self.codes)))
        user = torch.tensor(histories.user).long()
        return {
            "user": self.users[torch.where(user < len(self.users), user, 0)],
            "events": self.codes[events],
            "content": self.content[events],
            "there": events != NO_ITEM,
            "domain": torch.tensor(histories.domain).long() + 1,
        }
