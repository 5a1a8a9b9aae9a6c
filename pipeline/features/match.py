"""F9: how a candidate matches the user's history, one group of features a behaviour.

For each attribute (item, author, category, tag): how many events of the history share the candidate's, and how long
ago the newest of them was. For content vectors: the cosine of the candidate's with the history's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.features.timeline import Integers, Timeline

SECOND, SECONDS = 1_000_000, 60
NO_GAP = np.float32(np.log1p(365 * 24 * 60))
FIXED_POINT = 1 << 18


def names(behaviour: str, attributes: tuple[str, ...], content: bool) -> list[str]:
    """`clicked_same_category`, `clicked_category_gap`, …, `clicked_content_similarity`."""
    columns = [name for one in attributes for name in (f"{behaviour}_same_{one}", f"{behaviour}_{one}_gap")]
    return [*columns, f"{behaviour}_content_similarity"] if content else columns


@dataclass(frozen=True)
class Shared:
    """The events of a behaviour by (user, attribute value); within a pair, in the behaviour's own order."""

    size: int
    timeline: Timeline

    @classmethod
    def of(cls, users: Integers, values: Integers) -> Shared:
        """`values` (N,): the attribute's keys of the events' items, 0 where unknown; in the behaviour's order."""
        size = int(values.max(initial=0)) + 1
        return cls(size, Timeline.of(users * size + values, np.arange(len(users), dtype=np.int64)))


def found(
    index: Shared,
    event_times: Integers,
    users: Integers,
    values: Integers,
    times: Integers,
    ends: Integers,
    lengths: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Number of events in [end - length, end) with the candidate's value, and whole seconds since the newest of them
    (-1 where there is none): (Q,) each. An unknown value (0) matches nothing."""
    known = (values > 0) & (values < index.size)
    questions = index.timeline.ask(np.where(known, users * index.size + values, -1), ends)
    until = questions.before()
    counts = until - questions.before_times((ends - lengths)[questions.asked])
    newest = np.zeros(len(counts), np.int64)
    newest[counts > 0] = index.timeline.order[until[counts > 0] - 1]
    counts, newest = counts[questions.inverse], newest[questions.inverse]
    gaps = np.full(len(users), -1, np.int32)
    some = counts > 0
    gaps[some] = (times[some] - event_times[newest[some]]) // SECOND
    return counts.astype(np.int32), gaps


def encode(
    counts: npt.NDArray[np.integer], gaps: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """log1p of the counts, and log1p of the minutes of the gaps (`NO_GAP`, a year, where there is none)."""
    minutes = np.log1p(np.maximum(gaps, 0) / SECONDS).astype(np.float32)
    return np.log1p(counts.astype(np.float64)).astype(np.float32), np.where(gaps < 0, NO_GAP, minutes)


def running_content(content: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Running sums (N + 1, d) of the events' content vectors (N, d), in fixed point.

    Integers make a difference of two sums exact whatever came before, so that a history's mean does not depend on
    other users' events; overflow wraps around and cancels in the difference, which itself fits: a component of a unit
    vector is at most 1, so that a history may have 2^31 / `FIXED_POINT` = 8,192 events.
    """
    totals = np.zeros((len(content) + 1, content.shape[1]), np.int32)
    np.rint(content * FIXED_POINT, out=totals[1:], casting="unsafe")
    return np.cumsum(totals, axis=0, dtype=np.int32, out=totals)


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """F5: cosines (N,) of vectors (N, d) that are of length 1, or zero where absent, which gives 0."""
    cosines: npt.NDArray[np.float32] = np.einsum("nd,nd->n", a, b)
    return cosines


def content_similarity(
    totals: npt.NDArray[np.int32],
    candidates: npt.NDArray[np.float32],
    ends: Integers,
    lengths: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    """Cosine of the candidates' content (Q, d) with the mean content of [end - length, end); 0 where one is absent."""
    return similarity_to_sum(totals[ends] - totals[ends - lengths], candidates)


def similarity_to_sum(summed: npt.NDArray[np.int32], candidates: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same from the sums (Q, d) of the histories' content in fixed point."""
    history = summed.astype(np.float32)
    products = np.einsum("nd,nd->n", history, candidates)
    norms = np.sqrt(np.einsum("nd,nd->n", history, history) * np.einsum("nd,nd->n", candidates, candidates))
    cosines = np.zeros(len(products), np.float32)
    np.divide(products, norms, out=cosines, where=norms > 0)
    return cosines
