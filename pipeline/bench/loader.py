"""Rows a second of the loaders alone: feature Parquet into memory, shuffled batches out of it and from disk."""

from __future__ import annotations

from pipeline.bench.market import features_of
from pipeline.bench.measure import seconds
from pipeline.features.store import FeatureStore
from pipeline.ranking.batches import Encoder, shuffled
from pipeline.ranking.stream import streamed


def bench(rows: int = 300_000, batch_size: int = 4_096, seed: int = 0) -> dict[str, float]:
    with features_of(users=rows // 10, items=rows // 50, impressions=rows, seed=seed) as folder:
        store = FeatureStore.open(folder)
        encoder, log = Encoder(store), store.log("train")
        read = seconds(lambda: store.log("train"))
        batches = seconds(lambda: list(map(len, shuffled(encoder, log, size=batch_size, seed=seed)(1))))
        epoch = streamed(store, encoder, "train", size=batch_size, seed=seed)
        stream = seconds(lambda: list(map(len, epoch(1))))
        return {
            "rows": len(log),
            "columns": log.numbers.shape[1] + log.context.shape[1] + log.labels.shape[1],
            "read_rows_per_second": len(log) / read,
            "batch_rows_per_second": len(log) / batches,
            "stream_rows_per_second": len(log) / stream,
        }
