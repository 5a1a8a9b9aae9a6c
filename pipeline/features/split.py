"""F11: the split by time, and the detector that fails a run whose features know the future.

Slices are counted back from the log's end, so that a longer log needs no new configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Split
from pipeline.features.pairs import way_out
from pipeline.features.timeline import Integers
from pipeline.lake import InputError

SLICES = ("train", "validation", "test")
DAY = 86_400_000_000
MAXIMUM_AUC = 0.98
MINIMUM_COUNT = 50
CUTS = 4
ROWS_A_CUT = 120


def slices(times: Integers, split: Split) -> dict[str, int]:
    """Where the log and its slices begin, and where it ends (exclusive), in microseconds; `times` are ascending.

    Raises InputError naming an empty slice, its dates and the fix.
    """
    if len(times) == 0:
        raise InputError("events.parquet: no shown impressions, so there is nothing to split; check column shown")
    end = int(times[-1]) + 1
    test = end - round(split.test_days * DAY)
    validation = test - round(split.validation_days * DAY)
    bounds = {"begin": min(int(times[0]), validation), "validation": validation, "test": test, "end": end}
    counts = np.bincount(slice_of(times, bounds), minlength=len(SLICES))
    for name, count, first, last in zip(SLICES, counts, bounds.values(), list(bounds.values())[1:], strict=False):
        if count == 0:
            raise InputError(
                f"the {name} slice, {_date(first)} to {_date(last)}, holds no events (the log reaches from "
                f"{_date(int(times[0]))} to {_date(end)}); change split.validation_days or split.test_days"
            )
    return bounds


def slice_of(times: Integers, bounds: dict[str, int]) -> npt.NDArray[np.int8]:
    """Number of each row's slice: 0 train, 1 validation, 2 test."""
    return np.searchsorted([bounds["validation"], bounds["test"]], times, side="right").astype(np.int8)


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve of scores for 0/1 labels, ties counted half; NaN if one class is missing."""
    _, places = np.unique(np.asarray(scores), return_inverse=True)
    chosen = np.asarray(labels) > 0
    positives = np.bincount(places[chosen], minlength=places.max(initial=0) + 1).astype(np.float64)
    negatives = np.bincount(places[~chosen], minlength=len(positives)).astype(np.float64)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / pairs) if pairs else float("nan")


def single_feature_aucs(
    features: Mapping[str, npt.NDArray[Any]], labels: Mapping[str, npt.NDArray[Any]]
) -> dict[tuple[str, str], float]:
    """AUC of every feature alone, whichever way it points, for every task with at least 50 rows of both classes.

    Raises InputError naming the feature if one exceeds .98: it holds the label, or what followed from it.
    """
    found = {}
    for task, label in labels.items():
        if min((label > 0).sum(), (label <= 0).sum()) < MINIMUM_COUNT:
            continue
        for name, values in features.items():
            area = auc(values, label)
            found[name, task] = max(area, 1 - area)
            if found[name, task] > MAXIMUM_AUC:
                raise InputError(
                    f"feature {name!r} alone predicts {task!r} with AUC {found[name, task]:.3f} on training rows: it "
                    f"is made from the label or from what came after; {way_out(name)}"
                )
    return found


def future_sample(times: Integers) -> list[tuple[int, Integers]]:
    """Moments at which to cut a log with ascending `times`, and the rows to recompute from what lies before each.

    The rows are those of the moment itself, which lose themselves and their neighbours, and some just before it.
    """
    sample = []
    for place in np.unique(np.linspace(0, len(times) - 1, CUTS + 1).astype(np.int64)[1:]):
        moment = times[place]
        last = np.searchsorted(times, moment, side="right")
        first = np.searchsorted(times, moment)
        rows = np.arange(max(0, min(first, last - ROWS_A_CUT // 2) - ROWS_A_CUT // 2), last)[-ROWS_A_CUT:]
        sample.append((int(moment), rows.astype(np.int64)))
    return sample


def check_future(
    names: list[str], stored: npt.NDArray[np.float32], recomputed: npt.NDArray[np.float32], moment: int
) -> None:
    """Raise InputError naming the first feature whose stored values (N, M) differ from those of the cut log."""
    changed = (stored != recomputed).any(axis=0)
    if changed.any():
        name = names[int(np.argmax(changed))]
        rows = int((stored != recomputed)[:, np.argmax(changed)].sum())
        raise InputError(
            f"feature {name!r} knows the future: {rows} of {len(stored)} rows change when the log is cut at "
            f"{_date(moment)}; remove it from [features]"
        )


def _date(time: int) -> str:
    return f"{datetime.fromtimestamp(time / 1e6, UTC):%Y-%m-%d %H:%M}"
