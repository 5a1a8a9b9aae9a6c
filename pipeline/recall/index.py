"""R19, nearest neighbours: one small interface over Faiss, by inner product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from pipeline.lake import InputError

Kind = Literal["flat", "ivf", "hnsw"]

POINTS_PER_CELL = 39
PROBED = 8
LINKS = 32
BREADTH = 200, 512


def build(vectors: np.ndarray, ids: np.ndarray, kind: Kind) -> faiss.Index:
    """An index of (N, D) vectors under the numbers `ids` (N,).

    `flat` compares with all of them; `ivf` with those in the cells next to the query, about 4√N cells of which an
    eighth is probed; `hnsw` walks a graph with 32 links a node. Built on one thread: with more, HNSW's graph would
    depend on their race.
    """
    vectors = _checked(vectors, "vectors")
    index = _empty(kind, *vectors.shape)
    with _one_thread():
        if len(vectors):
            index.train(vectors)
        numbered = faiss.IndexIDMap(index)
        numbered.add_with_ids(vectors, np.ascontiguousarray(ids, dtype=np.int64))
    return numbered


def save(index: faiss.Index, path: Path) -> None:
    faiss.write_index(index, str(path))


def load(path: Path, dimension: int) -> faiss.Index:
    """Read an index, mapped into memory where its kind allows it.

    Raises `InputError` when the file is missing or its vectors are not `dimension` wide.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable index; build it again ({str(error).splitlines()[0]})") from None
    if index.d != dimension:
        raise InputError(f"{path}: holds vectors of width {index.d}, the model's are {dimension}; build it again")
    return index


def search(index: faiss.Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and inner products of the `k` nearest of each of Q queries, both (Q, k), best first.

    Where fewer than `k` are found the rest is id -1.
    """
    queries = _checked(queries, "queries")
    if queries.shape[1] != index.d:
        raise InputError(f"queries of width {queries.shape[1]} do not fit an index of width {index.d}")
    scores, ids = index.search(queries, k)
    return ids, scores


def _empty(kind: Kind, count: int, dimension: int) -> faiss.Index:
    match kind:
        case "flat":
            return faiss.IndexFlatIP(dimension)
        case "ivf":
            cells = int(max(1, min(4 * count**0.5, count / POINTS_PER_CELL)))
            inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, cells, faiss.METRIC_INNER_PRODUCT)
            inverted.nprobe = min(cells, max(PROBED, cells // 8))
            return inverted
        case "hnsw":
            graph = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = BREADTH
            return graph


def _checked(vectors: np.ndarray, name: str) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise InputError(f"{name}: expected a matrix, got the shape {vectors.shape}")
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(f"{name}: row {broken[0]} and {len(broken) - 1} more hold NaN or infinite values")
    return vectors


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
