"""R19, nearest neighbours by inner product: one interface over Faiss, torch, scipy and Milvus.

An index is a folder: `index.json` says what it holds and of which model, `ids.npy` whose the vectors are, and the
engine's own files hold the vectors, mapped into memory where their kind allows it. To remove an item is to forget whose
its vector is: every engine can do that, and a fit makes a new index anyway.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.lake import InputError, write_json
from pipeline.recall import faiss_engine, int8_engine, kd_tree_engine
from pipeline.recall.faiss_engine import HNSW, IVF, LSH, PQ, Flat
from pipeline.recall.int8_engine import Int8
from pipeline.recall.kd_tree_engine import KDTree

FORMAT, METRIC = 1, "inner product"
HEADER, IDS = "index.json", "ids.npy"

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Recipe = Flat | IVF | HNSW | PQ | LSH | KDTree | Int8

KINDS: dict[str, type[Recipe]] = {
    "flat": Flat,
    "ivf": IVF,
    "hnsw": HNSW,
    "pq": PQ,
    "lsh": LSH,
    "kd_tree": KDTree,
    "int8": Int8,
}


class Engine(Protocol):
    """N vectors by their places 0 … N - 1, in the order in which they were added."""

    @property
    def recipe(self) -> Recipe: ...

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        """Places (Q, k), -1 where fewer are found, and inner products (Q, k), of the nearest; k ≤ N."""

    def add(self, vectors: Floats) -> None: ...

    def save(self, folder: Path) -> None: ...


class Nearest(Protocol):
    """What all indexes can do, here or in another machine's memory."""

    def __len__(self) -> int: ...

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        """Ids and inner products of the `k` nearest of each of Q queries, both (Q, k), best first.

        Where fewer are found, as for a query that holds NaN, the rest is id -1. Raises `InputError` for queries of
        another width.
        """

    def add(self, vectors: Floats, ids: Integers) -> None:
        """Add vectors (N, D) as `ids` (N,); what is there under one of these ids goes."""

    def remove(self, ids: Integers) -> int:
        """Remove what is there under these ids, and tell how many that are."""

    def save(self, folder: Path) -> None:
        """Write it into an empty folder for `load`."""


@dataclass
class Index:
    """The vectors of `engine` are those of `ids` (N,), -1 for a removed one. `left_out` counts the vectors that were
    not finite; `model` is the fingerprint of what made them."""

    dimension: int
    model: str
    engine: Engine
    ids: Integers
    removed: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids) - self.removed

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        queries, known = finite(queries, self.dimension, "queries")
        wanted, enough = min(k, len(self.ids)), min(k, len(self))
        ids, scores = np.full((len(known), k), -1, np.int64), np.zeros((len(known), k), np.float32)
        if not enough or not len(queries):
            return ids, scores
        while True:
            places, products = self.engine.search(queries, wanted)
            found = self.ids[places]
            ended = places[:, -1] < 0
            if ended.any():
                found[places < 0], products[places < 0] = -1, 0
            if not self.removed:
                break
            short = (np.count_nonzero(found >= 0, axis=1) < enough) & ~ended
            if wanted == len(self.ids) or not short.any():
                there_first = np.argsort(found < 0, axis=1, kind="stable")
                found = np.take_along_axis(found, there_first, axis=1)
                products = np.take_along_axis(products, there_first, axis=1)
                products[found < 0] = 0
                break
            wanted = min(2 * wanted, len(self.ids))
        ids[known, :wanted], scores[known, :wanted] = found[:, :k], products[:, :k]
        return ids, scores

    def add(self, vectors: Floats, ids: Integers) -> None:
        vectors, ids, broken = numbered(vectors, ids, self.dimension)
        self.remove(ids)
        self.engine.add(vectors)
        self.ids = np.concatenate([self.ids, ids])
        self.left_out += broken

    def remove(self, ids: Integers) -> int:
        gone = np.isin(self.ids, ids) & (self.ids >= 0)
        self.ids[gone] = -1
        count = int(np.count_nonzero(gone))
        self.removed += count
        return count

    def save(self, folder: Path) -> None:
        self.engine.save(folder)
        np.save(folder / IDS, self.ids)
        kind = next(name for name, recipe in KINDS.items() if isinstance(self.engine.recipe, recipe))
        header = {"options": asdict(self.engine.recipe), "count": len(self), "left_out": self.left_out}
        write_header(folder, kind, self.dimension, self.model, header)


def build(vectors: Floats, ids: Integers, recipe: Recipe, *, model: str = "") -> Index:
    """An index of (N, D) vectors under the numbers `ids` (N,), each at most once and not negative.

    Vectors with NaN or infinite values are left out, counted and told. Fewer than 1,000 vectors are compared one by
    one, whatever the recipe says. The same vectors make the same bytes.

    Raises `InputError` for vectors that are no matrix, and for ids that do not fit them.
    """
    vectors, ids, broken = numbered(vectors, ids)
    if len(vectors) < faiss_engine.FEWEST:
        recipe = Flat()
    engine: Engine
    match recipe:
        case Int8():
            engine = int8_engine.build(vectors)
        case KDTree():
            engine = kd_tree_engine.build(vectors)
        case _:
            engine = faiss_engine.build(vectors, recipe)
    return Index(vectors.shape[1], model, engine, ids, left_out=broken)


def load(folder: Path, dimension: int, model: str = "") -> Nearest:
    """Open the index in a folder.

    Raises `InputError` when it is missing or damaged, when its format or the width of its vectors is another, and when
    they are those of another model than the one with this fingerprint.
    """
    header = read_header(folder, dimension, model)
    if header["kind"] == "milvus":
        from pipeline.recall import milvus

        return milvus.connect(header["address"], header["collection"], dimension, model)
    recipe = KINDS[header["kind"]](**header["options"])
    engine: Engine
    try:
        ids = np.asarray(np.load(folder / IDS, mmap_mode="c"))
        match recipe:
            case Int8():
                engine = int8_engine.load(folder)
            case KDTree():
                engine = kd_tree_engine.load(folder)
            case _:
                engine = faiss_engine.load(folder, recipe)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: not a readable index; build it again ({str(error).splitlines()[0]})") from None
    return Index(dimension, model, engine, ids, len(ids) - header["count"], header["left_out"])


def write_header(folder: Path, kind: str, dimension: int, model: str, further: dict[str, Any]) -> None:
    told = {"format": FORMAT, "metric": METRIC, "kind": kind, "dimension": dimension, "model": model}
    write_json(folder / HEADER, {**told, **further})


def read_header(folder: Path, dimension: int, model: str) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable index; build it again ({error})") from None
    if (header.get("format"), header.get("metric")) != (FORMAT, METRIC):
        raise InputError(
            f"{path}: an index of format {header.get('format')} by {header.get('metric')}, this code reads {FORMAT} "
            f"by {METRIC}; build it again"
        )
    if header["dimension"] != dimension:
        raise InputError(
            f"{path}: holds vectors of width {header['dimension']}, the model's are {dimension}; build it again"
        )
    if header["model"] != model:
        raise InputError(
            f"{path}: holds the vectors of model {header['model'] or '(none)'}, not of {model or '(none)'}; "
            "build it again with the model that is asked"
        )
    return header


def numbered(vectors: Floats, ids: Integers, dimension: int | None = None) -> tuple[Floats, Integers, int]:
    """The finite ones of the vectors (N, D), their ids, and how many were left out."""
    ids = np.ascontiguousarray(ids, dtype=np.int64)
    if len(ids) != len(vectors) or len(np.unique(ids)) < len(ids) or ids.min(initial=0) < 0:
        raise InputError(f"ids: {len(vectors)} vectors need as many different ids, none of them below 0")
    vectors, known = finite(vectors, dimension, "vectors")
    broken = int(np.count_nonzero(~known))
    if broken:
        logging.getLogger(__name__).warning("%d of %d vectors hold NaN or infinity: left out", broken, len(known))
    return vectors, ids[known], broken


def finite(vectors: Floats, dimension: int | None, name: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The rows without NaN and infinity, as contiguous float32, and which of all (N,) they are."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise InputError(f"{name}: expected a matrix, got the shape {vectors.shape}")
    if dimension is not None and vectors.shape[1] != dimension:
        raise InputError(f"{name} of width {vectors.shape[1]} do not fit an index of width {dimension}")
    known = np.isfinite(vectors.sum(axis=1, dtype=np.float64))
    return (vectors if known.all() else vectors[known]), known
