"""Semantic ids: items as codes by residual quantisation of their vectors (Rajput et al., NeurIPS 2023, §3.1, who learn
the codebooks with an RQ-VAE; here they are of k-means, level by level).

Level l's code is the nearest of its centroids to what the levels before left over. Items alike in all of them get one
code more that tells them apart.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt
import scipy.sparse.linalg as spla

from pipeline.recall.item_matrix import Engagements, power

NO_ID = -1
ITERATIONS, RESTARTS = 25, 4

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]


def semantic_ids(vectors: Vectors, known: npt.NDArray[np.bool_], *, levels: int, size: int, seed: int) -> Codes:
    """The ids (I, levels + 1) of items with `vectors` (I, C), `NO_ID` for those whose vector is all 0 or not finite.

    Centroids are those of the `known` (I,) items, which are also numbered before the others where ids collide, so that
    an item that comes later changes nobody's id.
    """
    there = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    ids = np.full((len(vectors), levels + 1), NO_ID, np.int32)
    if (there & known).any():
        codes = residual_codes(vectors[there], known[there], levels=levels, size=size, seed=seed)
        ids[there] = np.column_stack([codes, places(codes, known[there])])
    return ids


def residual_codes(vectors: Vectors, known: npt.NDArray[np.bool_], *, levels: int, size: int, seed: int) -> Codes:
    """The codes (N, levels) of the vectors (N, C), from up to `size` centroids a level of the `known` ones."""
    left = np.ascontiguousarray(vectors, np.float32)
    codes = np.empty((len(left), levels), np.int32)
    for level in range(levels):
        centroids = k_means(left[known], size, seed)
        nearest = faiss.IndexFlatL2(left.shape[1])
        nearest.add(centroids)
        codes[:, level] = nearest.search(left, 1)[1][:, 0]
        left = left - centroids[codes[:, level]]
    return codes


def k_means(vectors: Vectors, size: int, seed: int) -> Vectors:
    """Up to `size` centroids; the vectors themselves where there are no more than that."""
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= size:
        return distinct
    clusters = faiss.Kmeans(
        vectors.shape[1], size, niter=ITERATIONS, nredo=RESTARTS, seed=seed, min_points_per_centroid=1
    )
    clusters.train(vectors)
    return np.asarray(clusters.centroids)


def places(codes: Codes, known: npt.NDArray[np.bool_]) -> Codes:
    """Each row's place (N,), from 0, among those with the same codes, the known ones first, then in order."""
    order = np.lexsort((np.arange(len(codes)), ~known, *codes.T[::-1]))
    ordered = codes[order]
    new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(codes)]
    first = np.flatnonzero(new)
    place = np.empty(len(codes), np.int32)
    place[order] = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    return place


def engagement_vectors(known: Engagements, width: int) -> Vectors:
    """Items as `width` numbers where there is no content: the leading right singular vectors of D_U^−½ R D_I^−½, each
    row scaled to length 1, 0 where nobody took the item."""
    matrix = known.matrix()
    by_user, by_item = (np.asarray(matrix.sum(axis=axis)) for axis in (1, 0))
    scaled = power(by_user, -0.5) @ matrix @ power(by_item, -0.5)
    rank = min(width, min(scaled.shape) - 1)
    if rank < 1:
        return np.zeros((known.size, width), np.float32)
    _, values, right = spla.svds(scaled.astype(np.float64), k=rank, v0=np.ones(min(scaled.shape)), solver="arpack")
    vectors = np.zeros((known.size, width))
    vectors[:, :rank] = (values[:, None] * right).T
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(length > 1e-9, vectors / np.maximum(length, 1e-9), 0.0)
    return vectors.astype(np.float32)
