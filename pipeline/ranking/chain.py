"""The rank stages applied: merged candidates → coarse order → fine order, and the fine ranker on logged impressions.

Every merged candidate gets both scores, also those that the coarse ranker cuts: evaluation asks what fine-ranking
everything would have given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from models.schema import Schema
from pipeline.evaluation.metrics import duration_metrics
from pipeline.features.store import Columns, FeatureStore, Rows
from pipeline.parquet import read_parquet
from pipeline.ranking import coarse, fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.coarse import rank_within
from pipeline.ranking.delay import DelayCurve
from pipeline.ranking.merged import Merged


def rank(
    features: Path, recall: Path, coarse_folder: Path, fine_folder: Path, out: Path, *, keep: int, final: int
) -> dict[str, float]:
    """Write the lists of `order` and `predictions.parquet` (the test slice's impressions with the fine ranker's
    probabilities) to `out`."""
    store = FeatureStore.open(features)
    encoder, ranker = Encoder(store), fine.load(fine_folder)
    told = _order(store, encoder, ranker, recall, coarse_folder, out, keep=keep, final=final)
    impressions = predict(store, encoder, ranker.model, ranker.schema, ranker.delays)
    pq.write_table(impressions, out / "predictions.parquet", compression="zstd")
    return {**told, "impressions": len(impressions), **watch_metrics(impressions, ranker.schema)}


def order(
    features: Path, recall: Path, coarse_folder: Path, fine_folder: Path, out: Path, *, keep: int, final: int
) -> dict[str, float]:
    """Write `ranked.parquet` (every candidate with its scores and ranks) to `out`.

    Coarse keeps `keep` candidates a request, the final list shows `final` of them.
    """
    store = FeatureStore.open(features)
    return _order(store, Encoder(store), fine.load(fine_folder), recall, coarse_folder, out, keep=keep, final=final)


def _order(
    store: FeatureStore,
    encoder: Encoder,
    ranker: fine.Ranker,
    recall: Path,
    coarse_folder: Path,
    out: Path,
    *,
    keep: int,
    final: int,
) -> dict[str, float]:
    merged = Merged.open(recall)
    coarse_scores = coarse.load(coarse_folder).score(encoder, store, merged)
    coarse_rank = rank_within(coarse_scores, merged.request)
    scores = fine.score_candidates(ranker.model, encoder, store, merged)
    fused = ranker.fuse(scores, merged)
    kept = coarse_rank <= keep
    told = fine.with_durations(scores, ranker.schema)
    place = np.zeros(len(kept), np.int32)
    place[kept] = rank_within(fused[kept], merged.request[kept])
    candidates = read_parquet(recall / "merged.parquet")
    ranked = pa.table(
        {
            **{name: candidates[name] for name in ("request", "item", "position", "route")},
            "coarse": coarse_scores,
            "coarse_rank": coarse_rank.astype(np.int32),
            **{f"score_{task}": told[:, number] for number, task in enumerate(ranker.schema.labels)},
            "fused": fused.astype(np.float32),
            "fine_rank": rank_within(fused, merged.request).astype(np.int32),
            "rank": pa.array(place, mask=~kept),
            "shown": kept & (place <= final),
        }
    )
    pq.write_table(ranked, out / "ranked.parquet", compression="zstd")
    return {"ranked_candidates": len(merged.item), "ranked_requests": len(merged)}


def predict(
    store: FeatureStore, encoder: Encoder, model: nn.Module, schema: Schema, delays: Mapping[str, DelayCurve]
) -> pa.Table:
    """The test slice's impressions with what the fine ranker, whose schema this is, makes of them: `score_<task>`, the
    probability of each of the log's tasks or the expected seconds of a duration. Of tasks with `delays`, `known_<task>`
    is the share of the row's positives that is known when the log ends."""
    rows = store.log("test")
    scores = fine.with_durations(fine.probabilities(model, encoder, rows), schema)
    tasks = [label for label in schema.labels if label != fine.RELEVANCE]
    told = {f"score_{task}": scores[:, schema.labels.index(task)] for task in tasks}
    told |= {f"known_{task}": curve.known(store.slices["end"] - rows.time) for task, curve in delays.items()}
    return pa.table({**impressions(store, rows, "test", tasks), **told})


def impressions(store: FeatureStore, rows: Rows, slice_name: str, tasks: Sequence[str]) -> Columns:
    """The impressions of a slice, which are `rows`, with their labels, and the rate `item_<task>_rate_all` of their
    items so far."""
    names = [number.name for number in store.schema.numbers]
    rates = [rate for task in tasks if (rate := f"item_{task}_rate_all") in names]
    plain = store.columns(["user", "item", "domain", "time", "random", *tasks], slice_name)
    return {**plain, **{rate: rows.numbers[:, names.index(rate)] for rate in rates}}


def watch_metrics(predictions: pa.Table, schema: Schema) -> dict[str, float]:
    """`duration_metrics` of what the ranker expects of durations."""
    metrics: dict[str, float] = {}
    for name in (label for label in schema.labels if label in schema.durations):
        seconds, expected, user = (predictions[column].to_numpy() for column in (name, f"score_{name}", "user"))
        metrics |= duration_metrics(name, seconds, expected, user)
    return metrics
