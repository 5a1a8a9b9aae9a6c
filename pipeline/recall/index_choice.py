"""The choice of an index: the fastest that finds enough, measured on the vectors themselves.

Every kind is built once with usual sizes and then searched as thoroughly as the gate asks for, no more: recall grows
with the one number that says how much is looked at, so that its least sufficient value is found by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import mean, stdev

import numpy as np

from pipeline.lake import InputError
from pipeline.recall.faiss_engine import HNSW, IVF, PQ, FaissEngine, Flat
from pipeline.recall.index import KINDS, Floats, Index, Integers, Nearest, Recipe, build, numbered

SMALL, SAMPLE, QUERIES = 20_000, 100_000, 500
SLOWER = 4.0
STEP = 1.1
BROADEST = 4_096
REFINED = (2, 4, 8)
TRIED: tuple[Recipe, ...] = (PQ(), IVF(), HNSW())
ROUNDS, LONGEST = 3, 0.5


def make(vectors: Floats, ids: Integers, how: str, queries: Floats, *, model: str, name: str) -> Nearest:
    """The index of vectors (N, D) under `ids` (N,) that a route's option asks for.

    `how`: a kind; or "auto", which is `choose`'s first for queries like these (Q, D); or the address of a Milvus, where
    the collection is called by the route's `name` and the model's fingerprint. Raises `InputError` as `check` does.
    """
    check(how)
    if how == "auto":
        return choose(vectors, ids, queries, model=model)[0].index
    if how in KINDS:
        return build(vectors, ids, KINDS[how](), model=model)
    from pipeline.recall import milvus

    return milvus.build(vectors, ids, how, f"{name}_{model}", model=model)


def check(how: str) -> None:
    """Raise `InputError` for what `make` cannot make."""
    address = how.startswith(("http://", "https://")) or how.endswith(".db")
    if how != "auto" and how not in KINDS and not address:
        raise InputError(
            f"index {how!r} is unknown; it is auto, {', '.join(KINDS)}, or a Milvus: http://HOST:PORT or a file NAME.db"
        )
    if address and find_spec("pymilvus") is None:
        raise InputError(f"index {how!r} needs pymilvus; pip install 'recfunnel[milvus]'")


@dataclass(frozen=True)
class Trial:
    """What an index came to: recall@k of the queries, and seconds for one query that is asked alone."""

    index: Index
    recall: float
    seconds: float
    build_seconds: float


def choose(
    vectors: Floats, ids: Integers, queries: Floats, *, k: int = 100, gate: float = 0.95, model: str = ""
) -> list[Trial]:
    """What kinds come to as indexes of vectors (N, D) under `ids` (N,), the fastest for one query at a time first.

    All have a recall@k that lies above `gate` by a standard error over the queries (Q, D). Fewer than 20,000 vectors
    are compared one by one, with nothing else tried, and so are all where there are not two queries. Of more than
    200,000 a sample of 100,000 is tried first, and a kind that is four times as slow there as another is not built for
    all: cells take √N longer, a graph log N. Between kinds of nearly the same speed chance decides.
    """
    vectors, ids, broken = numbered(vectors, ids)
    flat = replace(build(vectors, ids, Flat(), model=model), left_out=broken)
    if len(flat) < SMALL or len(queries) < 2:
        return [Trial(flat, 1.0, 0.0, 0.0)]
    tried = TRIED
    if len(ids) > 2 * SAMPLE:
        some = np.random.default_rng(0).permutation(len(ids))[:SAMPLE]
        few = build(vectors[some], ids[some], Flat())
        rough = measured(vectors[some], ids[some], TRIED, few, queries, k, gate)
        slowest = SLOWER * min((trial.seconds for trial in rough), default=0.0)
        kept = {type(trial.index.engine.recipe) for trial in rough if trial.seconds <= slowest}
        tried = tuple(recipe for recipe in TRIED if type(recipe) in kept)
    alone = seconds_alone(lambda one: flat.search(one, k), queries)
    trials = measured(vectors, ids, tried, flat, queries, k, gate)
    return sorted([Trial(flat, 1.0, alone, 0.0), *trials], key=lambda trial: trial.seconds)


def measured(
    vectors: Floats, ids: Integers, recipes: Sequence[Recipe], flat: Index, queries: Floats, k: int, gate: float
) -> list[Trial]:
    """What recipes come to where they pass the gate, `flat` being the exact index of the same vectors."""
    exact, _ = flat.search(queries, k)
    trials = []
    for recipe in recipes:
        begun = time.perf_counter()
        made = replace(build(vectors, ids, recipe, model=flat.model), left_out=flat.left_out)
        taken = time.perf_counter() - begun
        for index in sufficient(made, queries, exact, gate):
            recall = mean(recalls(index, queries, exact))
            alone = seconds_alone(lambda one, index=index: index.search(one, k), queries)  # type: ignore[misc]
            trials.append(Trial(index, recall, alone, taken))
    return trials


def sufficient(made: Index, queries: Floats, exact: Integers, gate: float, *, errors: float = 1.0) -> Iterator[Index]:
    """The index as thorough as it takes to find `gate` of the `exact` ids (Q, k), by more than so many standard errors;
    not at all where it never does."""
    k = exact.shape[1]
    assert isinstance(made.engine, FaissEngine)
    families: list[list[Recipe]]
    match made.engine.recipe:
        case HNSW() as recipe:
            families = [[replace(recipe, breadth=breadth) for breadth in ladder(k, max(k, BROADEST))]]
        case IVF() as recipe:
            families = [[replace(recipe, probed=probed) for probed in ladder(1, recipe.cells)]]
        case PQ() as recipe:
            families = [
                [replace(recipe, probed=probed, refined=refined) for probed in ladder(1, recipe.cells)]
                for refined in REFINED
            ]
        case _:
            families = [[made.engine.recipe]]
    for family in families:
        low, high = 0, len(family)
        while low < high:
            middle = (low + high) // 2
            found = recalls(searched(made, family[middle]), queries, exact)
            if mean(found) - errors * stdev(found) / len(found) ** 0.5 >= gate:
                high = middle
            else:
                low = middle + 1
        if low < len(family):
            yield searched(made, family[low])


def searched(index: Index, recipe: Recipe) -> Index:
    """The same vectors, searched as another recipe of the same kind says."""
    return replace(index, engine=replace(index.engine, recipe=recipe))  # type: ignore[type-var]


def ladder(least: int, most: int) -> list[int]:
    """Whole numbers from `least` to `most`, a tenth apart or one."""
    steps = [least]
    while steps[-1] < most:
        steps.append(min(most, max(steps[-1] + 1, round(steps[-1] * STEP))))
    return steps


def recalls(index: Index, queries: Floats, exact: Integers) -> list[float]:
    """The share of each query's `exact` ids (Q, k) that the index finds."""
    found, _ = index.search(queries, exact.shape[1])
    return [float(np.isin(wanted, given).mean()) for wanted, given in zip(exact, found, strict=True)]


def seconds_alone(ask: Callable[[Floats], object], queries: Floats) -> float:
    """Mean seconds of queries (Q, D) asked one after another, each at its best of three rounds, half a second each at
    most: what interrupts a query in one round seldom interrupts it in all."""
    best = np.full(len(queries), np.inf)
    for _ in range(ROUNDS):
        end = time.perf_counter() + LONGEST
        for number in range(len(queries)):
            begun = time.perf_counter()
            if begun > end:
                break
            ask(queries[number : number + 1])
            best[number] = min(best[number], time.perf_counter() - begun)
    return float(best[np.isfinite(best)].mean())
