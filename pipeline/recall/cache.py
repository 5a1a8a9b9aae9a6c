"""R11, cache: what the fine ranker placed high the last time a user asked, and was not shown.

`remember` keeps that of a ranked folder; the route is fitted with it as its model. Users and items are kept by their
raw ids, so that the lists outlive the features they were ranked with. Without any, the route recalls nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.features.identity import canonical
from pipeline.features.store import FeatureStore
from pipeline.lake import write_json
from pipeline.recall.route import Found, Requests, Route, best, nothing
from pipeline.recall.snapshot import Snapshot

LISTS = "lists.parquet"
SETTINGS = "cache.json"
SIDES = ("user", "item")
COLUMNS = ("user", "domain", "item", "time", "rank")
HOUR = 3_600_000_000


def remember(features: Path, recall: Path, ranked: Path, out: Path, *, top: int = 100) -> dict[str, float]:
    """Write, of each ranked request, the `top` not shown by the fine ranker's order of all: user_id, item_id, domain
    (name), time (µs), rank (1 = best, the shown ones not counted)."""
    requests = pl.read_parquet(recall / "requests.parquet").filter(pl.col("user") > 0, pl.col("domain") >= 0)
    rank = pl.col("fine_rank").rank("ordinal").over("request").cast(pl.Int32)
    left = pl.read_parquet(ranked / "ranked.parquet").filter(~pl.col("shown")).select("request", "item", rank=rank)
    kept = left.filter(pl.col("rank") <= top).join(requests, on="request", how="inner").sort("request", "rank")
    users, items = (pl.read_parquet(features / f"{side}s.parquet")[f"{side}_id"] for side in ("user", "item"))
    domains = pl.Series("domain", json.loads((features / "schema.json").read_text())["domains"], pl.String)
    raw = [values.gather(kept[name]) for values, name in ((users, "user"), (items, "item"), (domains, "domain"))]
    pl.DataFrame([*raw, kept["time"], kept["rank"]]).write_parquet(out / LISTS, compression="zstd", statistics=False)
    return {"cached": len(kept), "cached_users": kept["user"].n_unique()}


def fit(snapshot: Snapshot, folder: Path, *, model: Path | None = None, hours: float = 48.0) -> None:
    """Write the remembered lists that were made before the snapshot, as numbers of its users, items and domains; each
    is good for `hours`."""
    lists = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.Int64))
    if model:
        lists = pl.read_parquet(model / LISTS).filter(pl.col("time") < snapshot.time)
        numbers = {
            f"{side}_id": pl.read_parquet(snapshot.store.folder / f"{side}s.parquet")[f"{side}_id"] for side in SIDES
        }
        numbers["domain"] = pl.Series(snapshot.store.schema.domains, dtype=pl.String)
        for name, values in numbers.items():
            place = pl.DataFrame({name: canonical(values)}).with_row_index(name.removesuffix("_id") + "_number")
            lists = lists.with_columns(canonical(lists[name])).join(place, on=name, how="inner", maintain_order="left")
        lists = lists.select(
            "time", "rank", *(pl.col(f"{name}_number").alias(name) for name in ("user", "item", "domain"))
        )
    lists = lists.join(snapshot.items.select("item").cast(lists.schema["item"]), on="item", how="semi")
    lists = lists.sort("user", "time", "domain", "rank")
    for name in COLUMNS:
        np.save(folder / f"{name}.npy", lists[name].to_numpy().astype(np.int64))
    write_json(folder / SETTINGS, {"hours": hours})


@dataclass(frozen=True)
class Cache:
    """N remembered entries, sorted by user: who was to be recommended what, where, when (µs) and at which rank; an
    entry is good for `life` µs."""

    user: npt.NDArray[np.int64]
    domain: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    life: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` best of what is remembered of each user: first the request's own domain's, then the others', by rank.

        The score is 1 / rank, and 1 more in the own domain. What the user took since is left out.
        """
        begin = np.searchsorted(self.user, requests.user)
        count = np.searchsorted(self.user, requests.user, side="right") - begin
        if not count.any():
            return nothing(len(requests))
        row = np.repeat(np.arange(len(requests)), count)
        entry = np.arange(len(row)) + np.repeat(begin - (np.cumsum(count) - count), count)
        age = requests.time[row] - self.time[entry]
        good = (age > 0) & (age <= self.life)
        good &= ~np.isin(row << 32 | self.item[entry], requests.row << 32 | requests.items)
        row, entry = row[good], entry[good]
        score = 1 / self.rank[entry] + (self.domain[entry] == requests.domain[row])
        order = np.lexsort((-score, self.item[entry], row))
        row, item, score = row[order], self.item[entry][order], score[order]
        first = (np.diff(row, prepend=-1) != 0) | (np.diff(item, prepend=-1) != 0)
        return best(row[first], item[first], score[first], requests=len(requests), k=k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    user, domain, item, time, rank = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS)
    told = json.loads((folder / SETTINGS).read_text())
    return Cache(user, domain, item, time, rank, life=round(told["hours"] * HOUR))
