"""Faiss indexes on clustered vectors: queries per second and recall@100 against exact search."""

from __future__ import annotations

import numpy as np

from pipeline.bench.measure import seconds
from pipeline.recall import index

KINDS: tuple[index.Kind, ...] = ("flat", "ivf", "hnsw")


def bench(vectors: int = 50_000, width: int = 32, queries: int = 500, k: int = 100, seed: int = 0) -> dict[str, float]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(200, width))
    made = centres[generator.integers(0, 200, vectors + queries)] + 0.5 * generator.normal(
        size=(vectors + queries, width)
    )
    made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    items, asked = made[:vectors], made[vectors:]
    ids = np.arange(vectors)
    figures: dict[str, float] = {"vectors": vectors}
    exact = index.search(index.build(items, ids, "flat"), asked, k)[0]
    for kind in KINDS:
        built = index.build(items, ids, kind)
        found = index.search(built, asked, k)[0]
        hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True))
        figures[f"{kind}_recall@{k}"] = hits / exact.size
        figures[f"{kind}_queries_per_second"] = queries / seconds(lambda built=built: index.search(built, asked, k))  # type: ignore[misc]
    return figures
