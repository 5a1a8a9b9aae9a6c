"""The kinds of index that are Faiss's (Douze et al., The Faiss library, 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

FILE = "index.faiss"
FEWEST = 1_000
POINTS_PER_CELL = 39, 64
ROUNDS = 10
BITS = 4
MOST_ON_GPU = 2_048

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Flat:
    """Compares with all."""


@dataclass(frozen=True)
class IVF:
    """Compares with those in the `probed` of all `cells` that are next to the query; 0 cells are 4√N, 0 probed an
    eighth of them."""

    cells: int = 0
    probed: int = 0


@dataclass(frozen=True)
class HNSW:
    """Walks a graph with up to 2 · `links` links a node, `breadth` candidates at a time, `build_breadth` while it is
    built (Malkov & Yashunin, TPAMI 2020)."""

    links: int = 16
    build_breadth: int = 100
    breadth: int = 256


@dataclass(frozen=True)
class PQ:
    """`IVF` over 4 bits a number, of the difference to the cell's centre (Jégou et al., TPAMI 2011; André et al., VLDB
    2015); `refined` times as many as asked for are compared exactly."""

    cells: int = 0
    probed: int = 0
    refined: int = 4


@dataclass(frozen=True)
class LSH:
    """Compares `bits` signs of random projections (0: 4 a dimension), and then exactly `refined` times as many as asked
    for (Charikar, STOC 2002)."""

    bits: int = 0
    refined: int = 10


Recipe = Flat | IVF | HNSW | PQ | LSH


@dataclass
class FaissEngine:
    """A Faiss index; one that is `mapped` from a folder is read anew before something is added to it.

    Flat and IVF answer from the GPU where there is one.
    """

    index: faiss.Index
    recipe: Recipe
    mapped: Path | None = None

    def __post_init__(self) -> None:
        self.fast = _on_gpu(self.index, self.recipe)

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        index = self.fast if k <= MOST_ON_GPU else self.index
        scores, places = index.search(queries, k, params=_thoroughness(self.recipe, k))
        return places, scores

    def add(self, vectors: Floats) -> None:
        if self.mapped:
            self.index, self.mapped = faiss.read_index(str(self.mapped / FILE)), None
        with one_thread():
            self.index.add(vectors)
        self.fast = _on_gpu(self.index, self.recipe)

    def save(self, folder: Path) -> None:
        faiss.write_index(self.index, str(folder / FILE))


def build(vectors: Floats, recipe: Recipe) -> FaissEngine:
    """Built on one thread: with more, HNSW's graph would depend on their race."""
    recipe = sized(recipe, *vectors.shape)
    index = _empty(recipe, vectors.shape[1])
    with one_thread():
        if len(vectors):
            index.train(vectors)
        index.add(vectors)
    return FaissEngine(index, recipe)


def load(folder: Path, recipe: Recipe) -> FaissEngine:
    """Read an index, mapped into memory where its kind allows it. Raises RuntimeError when there is none."""
    return FaissEngine(faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC), recipe, folder)


def sized(recipe: Recipe, count: int, dimension: int) -> Recipe:
    """The recipe with what it leaves open (0) set for `count` vectors; never more cells than can be trained."""
    match recipe:
        case IVF() | PQ():
            cells = max(1, min(recipe.cells or int(4 * count**0.5), count // POINTS_PER_CELL[0]))
            return replace(recipe, cells=cells, probed=min(cells, recipe.probed or max(8, cells // 8)))
        case LSH():
            return replace(recipe, bits=recipe.bits or 4 * dimension)
    return recipe


def _thoroughness(recipe: Recipe, k: int) -> Any:
    """How much of the index a search for `k` looks at, as Faiss's search parameters."""
    match recipe:
        case IVF():
            return faiss.SearchParametersIVF(nprobe=recipe.probed)  # type: ignore[call-arg]
        case HNSW():
            return faiss.SearchParametersHNSW(efSearch=max(recipe.breadth, k))  # type: ignore[attr-defined]
        case PQ():
            inner = faiss.SearchParametersIVF(nprobe=recipe.probed)  # type: ignore[call-arg]
            return faiss.IndexRefineSearchParameters(k_factor=recipe.refined, base_index_params=inner)  # type: ignore[call-arg]
        case LSH():
            return faiss.IndexRefineSearchParameters(k_factor=recipe.refined)  # type: ignore[call-arg]
    return None


def _empty(recipe: Recipe, dimension: int) -> faiss.Index:
    match recipe:
        case Flat():
            return faiss.IndexFlatIP(dimension)
        case IVF():
            centres = faiss.IndexFlatIP(dimension)
            inverted = faiss.IndexIVFFlat(centres, dimension, recipe.cells, faiss.METRIC_INNER_PRODUCT)
            _train_briefly(inverted)
            return inverted
        case HNSW():
            graph = faiss.IndexHNSWFlat(dimension, recipe.links, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = recipe.build_breadth
            return graph
        case PQ():
            centres = faiss.IndexFlatIP(dimension)
            coded = faiss.IndexIVFPQFastScan(
                centres, dimension, recipe.cells, dimension, BITS, faiss.METRIC_INNER_PRODUCT
            )
            coded.by_residual = True
            _train_briefly(coded)
            return faiss.IndexRefineFlat(coded)
        case LSH():
            signs = faiss.IndexLSH(dimension, recipe.bits)
            signs.metric_type = faiss.METRIC_INNER_PRODUCT  # by which the refinement compares
            return faiss.IndexRefineFlat(signs)


def _train_briefly(index: faiss.IndexIVF) -> None:
    index.cp.niter = ROUNDS
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = POINTS_PER_CELL


def _on_gpu(index: faiss.Index, recipe: Recipe) -> faiss.Index:
    """A copy on the GPU, if there is one and it knows the kind; else the index itself."""
    if not isinstance(recipe, Flat | IVF) or not faiss.get_num_gpus():
        return index
    return faiss.index_cpu_to_gpus_list(index, ngpu=1)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
