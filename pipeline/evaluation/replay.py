"""The test requests replayed: where each held-out positive stood in every stage's list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.schema import Schema
from pipeline.evaluation.metrics import hit_at, ndcg_at, recall_at, reciprocal_rank
from pipeline.lake import InputError

MERGE, COARSE, KEPT, FINAL = "merge", "coarse", "kept", "final"
UNION, EVERYTHING, WITHOUT_COARSE = "union", "fine on everything", "merge → fine"
KEY = ("request", "item")


@dataclass(frozen=True)
class Replay:
    """R requests with positives, their P held-out positives and the N candidates of the merge.

    `requests`: row, request, user, domain (its name), time. `positives`: row (of the request), request, item, `route`
    (the first giver), and one Float64 column a stage: the rank there, infinite where the stage's list lacks the item.
    `sizes`: items a request in each stage's list. `keep` and `final` are the lengths that coarse and fine cut to.
    """

    requests: pl.DataFrame
    positives: pl.DataFrame
    candidates: pl.DataFrame
    ranked: pl.DataFrame
    routes: tuple[str, ...]
    sizes: dict[str, float]
    keep: int
    final: int

    @classmethod
    def open(cls, features: Path, recall: Path, ranked: Path, *, keep: int) -> Replay:
        """Read the tables of the three stages; raises `InputError` where no request has a held-out positive."""
        domains = Schema.from_json((features / "schema.json").read_text()).domains
        held_out = pl.read_parquet(recall / "positives.parquet").unique(KEY, maintain_order=True)
        requests = (
            pl.read_parquet(recall / "requests.parquet")
            .join(held_out, on="request", how="semi", maintain_order="left")
            .with_columns(pl.lit(pl.Series(domains)).gather(pl.col("domain")).alias("domain"))
            .with_row_index("row")
        )
        if requests.is_empty():
            raise InputError(
                f"{recall}/requests.parquet: no request has a held-out positive; make the test slice longer"
            )
        chosen = requests.select("request", "row")
        candidates = pl.read_parquet(recall / "candidates.parquet").join(chosen, on="request")
        order = pl.read_parquet(ranked / "ranked.parquet").join(chosen, on="request")
        order = order.join(_without_coarse(order, keep), on=KEY, how="left").sort("row", "position")
        routes = tuple(candidates["route"].unique().sort())

        lists = {
            **{route_stage(route): (candidates.filter(pl.col("route") == route), pl.col("rank")) for route in routes},
            UNION: (candidates.unique(KEY), pl.lit(1)),
            MERGE: (order, pl.col("position")),
            COARSE: (order, pl.col("coarse_rank")),
            KEPT: (order.filter(pl.col("coarse_rank") <= keep), pl.col("coarse_rank")),
            FINAL: (order.filter("shown"), pl.col("rank")),
            EVERYTHING: (order, pl.col("fine_rank")),
            WITHOUT_COARSE: (order.drop_nulls("without_coarse"), pl.col("without_coarse")),
        }
        positives = held_out.select(KEY).join(chosen, on="request").sort("row", "item")
        for stage, (items, rank) in lists.items():
            place = items.select(*KEY, rank.cast(pl.Float64).alias(stage))
            positives = positives.join(place, on=KEY, how="left", maintain_order="left")
        givers = _first_givers(candidates, order)
        return cls(
            requests=requests,
            positives=positives.with_columns(pl.col(*lists).fill_null(np.inf)).join(
                givers, on=KEY, how="left", maintain_order="left"
            ),
            candidates=candidates,
            ranked=order,
            routes=routes,
            sizes={stage: len(items) / len(requests) for stage, (items, _) in lists.items()},
            keep=keep,
            final=int(order.filter("shown").select(pl.col("rank").max().fill_null(1)).item()),
        )

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def stages(self) -> tuple[str, ...]:
        """The funnel's lists in order, from each route to the final list."""
        return (*map(route_stage, self.routes), UNION, MERGE, COARSE, KEPT, FINAL)

    @property
    def owner(self) -> np.ndarray:
        """Row (P,) of each positive's request."""
        return self.positives["row"].to_numpy().astype(np.int64)

    def rank(self, stage: str) -> np.ndarray:
        """Rank (P,) of each positive in the stage's list."""
        return self.positives[stage].to_numpy()

    def recall(self, stage: str, k: float) -> np.ndarray:
        """Recall@k (R,) of each request."""
        return recall_at(self.rank(stage), self.owner, len(self), k)

    def ndcg(self, stage: str, k: int) -> np.ndarray:
        """NDCG@k (R,) of each request."""
        return ndcg_at(self.rank(stage), self.owner, len(self), k)

    def metrics(self, stage: str, cutoffs: tuple[int, ...]) -> pl.DataFrame:
        """A row a request: recall of the whole list, recall, NDCG and hit rate at each cut-off, reciprocal rank.

        The union of the routes is a set: only the recall of its whole is defined, the rest is null.
        """
        rank, owner, count = self.rank(stage), self.owner, len(self)
        columns = {"recall": recall_at(rank, owner, count, np.finfo(float).max)}
        for k in cutoffs:
            columns[f"recall_{k}"] = recall_at(rank, owner, count, k)
            columns[f"ndcg_{k}"] = ndcg_at(rank, owner, count, k)
            columns[f"hit_{k}"] = hit_at(rank, owner, count, k)
        columns["mrr"] = reciprocal_rank(rank, owner, count)
        table = pl.DataFrame(columns)
        if stage != UNION:
            return table
        return table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in columns if name != "recall")


def route_stage(route: str) -> str:
    """Name of a route's list among the stages."""
    return f"route {route}"


def stage_table(replay: Replay, cutoffs: tuple[int, ...]) -> pl.DataFrame:
    """Means over requests: a row for each stage and domain, all domains together first.

    Columns: stage, domain, requests, positives, size (items a request, null by domain), and `Replay.metrics`.
    """
    who = replay.requests.select("domain", positives=pl.Series(np.bincount(replay.owner, minlength=len(replay))))
    tables = []
    for stage in (*replay.stages, EVERYTHING):
        each = pl.concat([who, replay.metrics(stage, cutoffs)], how="horizontal")
        summary = [
            pl.len().alias("requests"),
            pl.col("positives").sum(),
            pl.all().exclude("positives", "domain").mean(),
        ]
        overall = each.select(pl.lit("all").alias("domain"), *summary)
        split = each.group_by("domain").agg(*summary).sort("domain")
        sizes = pl.Series("size", [replay.sizes[stage], *[None] * len(split)], dtype=pl.Float64)
        tables.append(
            pl.concat([overall, split]).select(
                pl.lit(stage).alias("stage"),
                "domain",
                "requests",
                "positives",
                sizes,
                pl.all().exclude("domain", "requests", "positives"),
            )
        )
    return pl.concat(tables)


def route_table(replay: Replay, cutoffs: tuple[int, ...]) -> pl.DataFrame:
    """What each route brings: items a request, recall, and its share of the merge and of the final list.

    `only` is the share of the held-out positives that no other route gave; `merge_share` and `final_share` are shares
    of places by first giver, `final_positives` the positives shown thanks to it.
    """
    given = replay.positives.select(pl.col(route_stage(route)).is_finite() for route in replay.routes).to_numpy()
    alone = given & (given.sum(axis=1, keepdims=True) == 1)
    shown = replay.positives.filter(pl.col(FINAL).is_finite())["route"]
    final = replay.ranked.filter("shown")["route"]
    rows = []
    for number, route in enumerate(replay.routes):
        stage = route_stage(route)
        means = replay.metrics(stage, cutoffs).select("recall", *(f"recall_{k}" for k in cutoffs)).mean()
        rows.append(
            {
                "route": route,
                "size": replay.sizes[stage],
                **means.row(0, named=True),
                "only": float(alone[:, number].mean()),
                "merge_share": float((replay.ranked["route"] == route).mean() or 0.0),  # type: ignore[arg-type]
                "final_share": float((final == route).mean() or 0.0),  # type: ignore[arg-type]
                "final_positives": int((shown == route).sum()),
            }
        )
    return pl.DataFrame(rows)


def _without_coarse(ranked: pl.DataFrame, keep: int) -> pl.DataFrame:
    """The list that the fine ranker makes of the first `keep` of the merge, the coarse stage left out."""
    place = pl.col("fused").rank("ordinal", descending=True).over("request").cast(pl.Int32)
    return ranked.filter(pl.col("position") <= keep).sort(*KEY[:1], "position").select(*KEY, without_coarse=place)


def _first_givers(candidates: pl.DataFrame, ranked: pl.DataFrame) -> pl.DataFrame:
    """The route each candidate is credited to: the merge's word, else the route that ranked it best."""
    best = candidates.sort("row", "item", "rank", "route").unique(KEY, keep="first", maintain_order=True)
    merged = ranked.select(*KEY, pl.col("route").alias("first"))
    route = pl.coalesce("first", "route").alias("route")
    return best.join(merged, on=KEY, how="left").select(*KEY, route)
