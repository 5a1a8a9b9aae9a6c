"""Nearest neighbours among clustered vectors: build, memory, recall@k against exact search, and queries per second.

One thread, one query at a time, as a request comes. "Automatic" is what `index_choice.choose` takes for one half of the
queries; by hand is a sweep over sizes and parameters judged on the other half, on which all figures are.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import torch

from pipeline.recall import index_choice
from pipeline.recall.faiss_engine import HNSW, IVF, LSH, PQ, Flat
from pipeline.recall.index import Floats, Index, Integers, Recipe, build
from pipeline.recall.int8_engine import Int8
from pipeline.recall.kd_tree_engine import KDTree

GATE = 0.95
CELLS = 1.0, 2.0, 4.0, 8.0
LINKS = 16, 32
KD_TREE_QUERIES = 5
TASTES = 3
ROUNDS = 3


@dataclass(frozen=True)
class Figures:
    """Of one index."""

    build_seconds: float
    megabytes: float
    recall: float
    per_second: float


def bench(
    vectors: int = 50_000, width: int = 64, queries: int = 1_000, k: int = 100, seed: int = 0
) -> dict[str, float]:
    """`vectors=1000000` is what the README states; it takes tens of minutes, most of them to build HNSW's graphs."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    items, users = market_vectors(vectors, queries, width, seed)
    ids, known, asked = np.arange(vectors), users[: queries // 2], users[queries // 2 :]
    flat = build(items, ids, Flat())
    exact, _ = flat.search(asked, k)
    begun = time.perf_counter()
    chosen = index_choice.choose(items, ids, known, k=k, gate=GATE)[0]
    chosen_in = time.perf_counter() - begun

    def judge(index: Index, build_seconds: float, some: int = queries) -> Figures:
        recall = float(np.mean(index_choice.recalls(index, asked[:some], exact[:some])))
        return Figures(build_seconds, megabytes(index), recall, 1 / alone(index, asked[:some]))

    def alone(index: Index, queries: Floats) -> float:
        return index_choice.seconds_alone(lambda one: index.search(one, k), queries)

    best = {"flat": judge(flat, 0.0)}
    by_hand, by_hand_per_second = flat, best["flat"].per_second
    sweep: dict[str, list[Recipe]] = {
        "ivf": [IVF(cells=int(share * vectors**0.5)) for share in CELLS],
        "pq": [PQ(cells=int(share * vectors**0.5)) for share in CELLS],
        "hnsw": [HNSW(links=links) for links in LINKS],
    }
    for kind, recipes in sweep.items():
        for recipe in recipes:
            made, taken = _built(items, ids, recipe)
            for index in index_choice.sufficient(made, asked, exact, GATE, errors=0.0):
                found = judge(index, taken)
                if kind not in best or found.per_second > best[kind].per_second:
                    best[kind] = found
                if found.per_second > by_hand_per_second:
                    by_hand, by_hand_per_second = index, found.per_second
    in_turn = [(alone(chosen.index, asked), alone(by_hand, asked)) for _ in range(ROUNDS)]
    automatic, hand = np.min(in_turn, axis=0)
    others: dict[str, Recipe] = {"lsh": LSH(), "int8": Int8(), "kd_tree": KDTree()}
    for kind, recipe in others.items():
        best[kind] = judge(*_built(items, ids, recipe), KD_TREE_QUERIES if kind == "kd_tree" else queries)
    if find_spec("hnswlib"):
        best["hnswlib"] = hnswlib_figures(items, asked, exact)
    best["automatic"] = judge(chosen.index, chosen.build_seconds)
    return {
        "vectors": vectors,
        **{f"{kind}_{name}": value for kind, found in best.items() for name, value in vars(found).items()},
        "automatic_choose_seconds": chosen_in,
        "by_hand_per_second": 1 / hand,
        "automatic_share_of_by_hand": hand / automatic,
    }


def _built(items: Floats, ids: Integers, recipe: Recipe) -> tuple[Index, float]:
    begun = time.perf_counter()
    made = build(items, ids, recipe)
    return made, time.perf_counter() - begun


def market_vectors(items: int, users: int, width: int, seed: int) -> tuple[Floats, Floats]:
    """Unit vectors of items (I, D) and users (U, D) as trained towers have them.

    Items lie in clusters of long-tailed sizes, about 500 a cluster; the variance between and within clusters falls off
    over a rotated basis, so that it is far from equal in all directions. A user is the mean of up to three items and
    noise.
    """
    generator = np.random.default_rng(seed)
    clusters = max(8, items // 500)
    spread = (1 + np.arange(width)) ** -0.5
    turn = np.linalg.qr(generator.normal(size=(width, width)))[0]
    centres = generator.normal(size=(clusters, width)) * spread
    share = (1 + np.arange(clusters)) ** -0.7
    cluster = generator.choice(clusters, items, p=share / share.sum())
    made = centres[cluster].astype(np.float32)
    made += (0.6 * spread * generator.normal(size=(items, width))).astype(np.float32)
    made = _unit(made @ turn.astype(np.float32))
    tastes = generator.integers(1, TASTES + 1, users)
    chosen = made[generator.integers(0, items, (users, TASTES))] * (np.arange(TASTES) < tastes[:, None])[..., None]
    noise = 0.3 * _unit(generator.normal(size=(users, width)))
    return made, _unit(_unit(chosen.sum(axis=1)) + noise).astype(np.float32)


def megabytes(index: Index) -> float:
    """On disk, which is about what lies in memory."""
    with tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as folder:
        index.save(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6


def hnswlib_figures(items: Floats, asked: Floats, exact: Integers) -> Figures:
    """Of the rival, with the same links and breadth while building, and the least sufficient breadth."""
    import hnswlib

    k = exact.shape[1]
    rival = hnswlib.Index(space="ip", dim=items.shape[1])
    rival.init_index(max_elements=len(items), M=HNSW().links, ef_construction=HNSW().build_breadth, random_seed=0)
    rival.set_num_threads(1)
    begun = time.perf_counter()
    rival.add_items(items)
    taken, recall = time.perf_counter() - begun, 0.0
    for breadth in index_choice.ladder(k, index_choice.BROADEST):
        rival.set_ef(breadth)
        found, _ = rival.knn_query(asked, k)
        recall = float(np.mean([np.isin(wanted, given).mean() for wanted, given in zip(exact, found, strict=True)]))
        if recall >= GATE:
            break
    alone = index_choice.seconds_alone(lambda one: rival.knn_query(one, k), asked)
    return Figures(taken, rival.index_file_size() / 1e6, recall, 1 / alone)


def _unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    lengths: npt.NDArray[np.floating] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
