"""L5: labels that arrive late. A row that is asked too early takes a positive to come for a negative.

What is known of a row at age e of a positive with probability p is F(e) p, where F is how delays are distributed. So
the model's logits are taken to that probability before the loss: the likelihood of Chapelle (Modeling Delayed Feedback
in Display Advertising, KDD 2014, §3), with a delay distribution that is estimated without a form instead of an
exponential one of the row's own. A row asked for the second time (`pipeline.ranking.carry`) is asked what has become
known since: of those not known at age o, (F(e) − F(o)) p / (1 − F(o) p) have become so by e. The likelihoods of both
times make that of the whole, so late positives put right what was learnt before them, and nothing counts twice.

Variance gate. A label over its F(e) is right on average, with a variance of (1 − F) / F times what it estimates. A row
waits until that is at most `delay_variance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import Loss
from pipeline.features.store import UNKNOWN_TIME, FeatureStore, Rows, as_columns, delayed
from pipeline.features.timeline import Integers
from pipeline.lake import InputError
from pipeline.ranking.carry import Known

Floats = npt.NDArray[np.float32]

SETTLED = 0.01
FEWEST = 50
POINTS = 1_000
HOUR = 3_600_000_000


@dataclass(frozen=True)
class DelayCurve:
    """Which share of the positives is known at what age: `shares` (K,) from the ages `delays` (K,) µs on, both
    ascending; none before."""

    delays: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, delay: Integers, age: Integers) -> DelayCurve:
        """From the delays (N,) of the positives that are known, each of which is known only since its delay is not
        above its row's age (N,).

        This is the estimate without a form under right truncation, F(d) = Π (1 − n_j / R_j) over the delays d_j > d,
        with n_j positives of just that delay among R_j of a delay of at most d_j whose age is at least d_j
        (Lynden-Bell, MNRAS 155, 1971; Woodroofe, Annals of Statistics 13, 1985). Longer delays than the greatest age
        are none, since nothing tells of them.
        """
        values, counts = np.unique(delay, return_counts=True)
        at_risk = np.cumsum(counts) - np.searchsorted(np.sort(age), values)
        left = 1 - counts / at_risk
        shares = np.append(np.cumprod(left[:0:-1])[::-1], 1.0)
        kept = np.unique(np.searchsorted(shares, np.linspace(shares[0], 1.0, POINTS)))
        return cls(values[kept].astype(np.int64), shares[kept])

    def known(self, age: Integers) -> Floats:
        """The share of positives that are known at each age (N,)."""
        place = np.searchsorted(self.delays, age, side="right")
        return np.concatenate([[0.0], self.shares])[place].astype(np.float32)

    def wait(self, variance: float) -> int:
        """The age (µs) from which on a label over what is known of it varies by at most `variance`."""
        return int(self.delays[np.searchsorted(self.shares, 1 / (1 + variance) - 1e-12)])

    def to_json(self) -> dict[str, list[float]]:
        return {"hours": (self.delays / HOUR).tolist(), "shares": self.shares.tolist()}

    @classmethod
    def from_json(cls, raw: dict[str, list[float]]) -> DelayCurve:
        return cls(np.round(np.array(raw["hours"]) * HOUR).astype(np.int64), np.array(raw["shares"]))


@dataclass(frozen=True)
class Asked:
    """What is asked of rows (N,) about T labels: `labels` (N, T), NaN where nothing is; the share of positives that is
    `known` by now, and that has been `gained` since they were last asked, (N, T); and how many rows wait, and how many
    positives are late, of all delayed tasks."""

    labels: Floats
    known: Floats
    gained: Floats
    waiting: int
    late: int


def curves(store: FeatureStore, tasks: tuple[str, ...]) -> dict[str, DelayCurve]:
    """The delays of these tasks, from what is known of the train slice when the log ends; its positives are in memory.

    Raises `InputError` for a task without a column of times and for one with too few positives.
    """
    found, as_of = {}, store.slices["end"]
    for task in tasks:
        waited, ages = [], []
        for table in store.tables("train", names=_times(store, task)):
            arrival, time = arrivals(table, task), table["time"].to_numpy()
            there = (arrival != UNKNOWN_TIME) & (arrival < as_of)
            waited.append(arrival[there] - time[there])
            ages.append(as_of - time[there])
        count = sum(map(len, ages))
        if count < FEWEST:
            told = f"{count} positives with a time in the train slice, fewer than the {FEWEST} it takes"
            raise InputError(f"fine.loss.delay: {task!r} has {told} to say how late they come; leave it out")
        found[task] = DelayCurve.of(np.concatenate(waited), np.concatenate(ages))
    return found


def arrivals(table: pa.Table, task: str) -> Integers:
    """When the label of each row of a day became positive (µs), or the unknown time: (N,)."""
    column = f"{task}_time"
    return as_columns(table.select([column]))[column]


def _times(store: FeatureStore, task: str) -> list[str]:
    if not delayed(store.folder, [task]):
        raise InputError(f"fine.loss.delay: events.parquet has no column '{task}_time'; leave {task!r} out")
    return [f"{task}_time"]


def ask(
    store: FeatureStore,
    rows: Rows,
    arrival: Mapping[str, Integers],
    loss: Loss,
    of: dict[str, DelayCurve],
    before: Known | None,
) -> Asked:
    """What to ask of rows (N,) of the train slice, which a model that knew `before` has been asked already; `arrival`
    (N,) of each task with a curve is when its label became positive.

    Labels that do not come late are asked of the rows since. Of those that do, an older row is asked again while more
    than `SETTLED` has been gained, unless its positive had been known.
    """
    labels = rows.labels.copy()
    known, gained = np.ones_like(labels), np.ones_like(labels)
    old = rows.time < before.until if before else np.zeros(len(rows), dtype=bool)
    labels[old] = np.nan
    age = store.slices["end"] - rows.time
    age_then = (before.as_of if before else 0) - rows.time
    waiting = late = 0
    for task, curve in of.items():
        wait, delay = curve.wait(loss.delay_variance), arrival[task] - rows.time
        positive = (arrival[task] != UNKNOWN_TIME) & (delay < age)
        asked_then = old & (age_then >= wait)
        told_then = asked_then & positive & (delay < age_then)
        share = curve.known(age)
        gain = share - np.where(asked_then, curve.known(age_then), np.float32(0))
        asks = (age >= wait) & ~told_then & (~asked_then | (gain > SETTLED))
        place = store.schema.labels.index(task)
        labels[:, place] = np.where(asks, positive, np.nan)
        known[:, place], gained[:, place] = share, gain
        waiting += int((age < wait).sum())
        late += int((asks & asked_then & positive).sum())
    return Asked(labels, known, gained, waiting, late)
