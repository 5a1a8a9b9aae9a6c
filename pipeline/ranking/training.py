"""What the fine ranker is trained on: the train slice's impressions as the settings ask them, and recalled candidates.

It is written once, as records beside the features, from which every epoch is streamed (`stream`): a day of the log is
in memory at a time, and in training two windows of rows, however long the log is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models import processes
from models.schema import Schema
from pipeline import lake
from pipeline.config import Fine, Loss
from pipeline.features.store import CHUNK, DAY, Columns, FeatureStore, Rows
from pipeline.lake import InputError
from pipeline.progress import progress
from pipeline.ranking import delay
from pipeline.ranking.batches import Encoder, Records, layout
from pipeline.ranking.carry import Known
from pipeline.ranking.delay import DelayCurve
from pipeline.ranking.merged import Merged
from pipeline.ranking.stream import Stored
from pipeline.ranking.weighting import repeat_weights, sample_negatives

RECORDS, TOLD = "records.bin", "training.json"
MOST = 1_000_000
NOBODY = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Training:
    """Records to train on, with what the settings' criterion reads beside the rows: how much each counts, `weight`
    (N,), and of labels that come late which share is `known` (N, T), and has been `gained` since they were last asked
    (`delay`). `delays` are the curves that these were read off, `longest` is the longest that was watched (NaN if this
    is not learnt), `told` are counts."""

    stored: Stored
    delays: dict[str, DelayCurve]
    longest: float
    told: dict[str, float]

    def remove(self) -> None:
        """Take the records off the disk, when all processes are done with them."""
        processes.wait()
        if processes.place() == 0:
            shutil.rmtree(self.stored.path.parent)


@dataclass(frozen=True)
class Part:
    """Some impressions to train on, columns `beside` them, and how many labels still wait, and came late."""

    rows: Rows
    beside: Columns
    waiting: int
    late: int


def prepared(
    store: FeatureStore,
    encoder: Encoder,
    settings: Fine,
    seed: int,
    *,
    before: Known | None = None,
    recall: Path | None = None,
) -> Training:
    """What the settings train on, found beside the features folder or written there, by the first of several processes.

    With `before`, the impressions with something to say that the model that knew this was not told. With `recall`, a
    folder of requests, their candidates too, of which one label more is known, and that one alone.

    Raises `InputError` where there is no impression.
    """
    loss = settings.loss
    told: dict[str, Any] = {
        "loss": [loss.delay, loss.delay_variance, loss.negative_rate, loss.repeat_weight, loss.watch_time],
        "seed": seed if recall or loss.negative_rate < 1 else None,
        "before": [before.until, before.as_of] if before else None,
        "candidates": [settings.candidates, settings.candidate_requests] if recall else None,
    }
    inputs = [store.folder, *([recall] if recall else [])]
    place = lake.stage(store.folder.parent, "training", lake.fingerprint(prepared, inputs=inputs, **told))
    if not place.done and processes.place() == 0:
        with place.writing() as folder:
            _write(folder, store, encoder, settings, seed, before, recall)
    processes.wait()
    written = json.loads((place.path / TOLD).read_text())
    labels = len(store.schema.labels) + len(watched(store.schema, loss.watch_time)) + (recall is not None)
    by_label = np.dtype((np.float32, (labels,)))
    kinds: dict[str, npt.DTypeLike] = {"known": by_label, "gained": by_label} if loss.delay else {}
    kinds |= {"weight": np.float32} if loss.repeat_weight else {}
    return Training(
        stored=Stored(place.path / RECORDS, layout(store.schema, labels, kinds)),
        delays={task: DelayCurve.from_json(curve) for task, curve in written["delays"].items()},
        longest=written["longest"],
        told=written["told"],
    )


def _write(
    folder: Path,
    store: FeatureStore,
    encoder: Encoder,
    settings: Fine,
    seed: int,
    before: Known | None,
    recall: Path | None,
) -> None:
    loss = settings.loss
    delays = delay.curves(store, loss.delay) if loss.delay else {}
    counts = dict.fromkeys(("impressions", "candidates", "waiting", "late"), 0)
    longest = -np.inf

    def records() -> Iterator[Records]:
        nonlocal longest
        for part in weighed(store, loss, delays, seed, before):
            for name in ("waiting", "late"):
                counts[name] += getattr(part, name)
            counts["impressions"] += len(part.rows)
            seconds = part.rows.labels[:, len(store.schema.labels) :]
            longest = max(longest, float(np.nanmax(seconds, initial=-np.inf)))
            yield encoder.records(*(_wider(part) if recall else (part.rows, part.beside)))
        if not counts["impressions"]:
            raise InputError(f"{store.folder}: the train slice has nothing new; refresh when the log has grown")
        if recall:
            recalled = first_requests(recall, "distil", settings.candidate_requests)
            for piece in recalled.sample(settings.candidates, seed).chunks(CHUNK):
                rows = candidates(store, piece, loss.watch_time)
                counts["candidates"] += len(rows)
                yield encoder.records(rows, _ones(rows, loss))

    Stored.write(folder / RECORDS, records())
    told = {f"training_{name}": counts[name] for name in ("impressions", "candidates")}
    if delays:
        told |= {"rows_waiting": counts["waiting"], "late_positives": counts["late"]}
    curves = {task: curve.to_json() for task, curve in delays.items()}
    lake.write_json(folder / TOLD, {"delays": curves, "longest": longest, "told": told})


def weighed(
    store: FeatureStore, loss: Loss, delays: dict[str, DelayCurve], seed: int, before: Known | None = None
) -> Iterator[Part]:
    """Those of the train slice's impressions that the settings train on, and how they count, some at a time, in order;
    with `before`, those with something to say that the model that knew this was not told."""
    random = np.random.default_rng(seed)
    recent = [np.zeros(0, np.int64)] * 3
    for table in progress(store.tables("train"), "records to train on"):
        if loss.repeat_weight:
            columns = zip(recent, (table[name].to_numpy() for name in ("user", "item", "time")), strict=True)
            user, item, time = map(np.concatenate, columns)
            weight = repeat_weights(user, item, time, loss.repeat_weight)[len(recent[0]) :]
            last_day = time >= time.max(initial=0) - DAY
            recent = [column[last_day] for column in (user, item, time)]
        for begin in range(0, table.num_rows, CHUNK):
            some = table.slice(begin, CHUNK)
            rows = with_watched(store.decode(some), store.schema, loss.watch_time)
            arrival = {task: delay.arrivals(some, task) for task in delays}
            asked = delay.ask(store, rows, arrival, loss, delays, before)
            beside = {"known": asked.known, "gained": asked.gained} if delays else {}
            if loss.repeat_weight:
                beside["weight"] = weight[begin : begin + CHUNK]
            new = np.flatnonzero(~np.isnan(asked.labels).all(axis=1) if before else np.ones(len(rows)))
            rows, kept = sample_negatives(replace(rows, labels=asked.labels).take(new), loss.negative_rate, random)
            yield Part(rows, {name: column[new][kept] for name, column in beside.items()}, asked.waiting, asked.late)


def held_out(
    store: FeatureStore,
    watch_time: str,
    *,
    without: npt.NDArray[np.integer] = NOBODY,
    most: int = MOST,
) -> Rows:
    """The validation slice's impressions, but those of some users; of more than `most` those of users, drawn at random,
    who have so many together."""
    of_rows = store.columns(["user"], "validation")["user"]
    users, counts = np.unique(of_rows[~np.isin(of_rows, without)], return_counts=True)
    if counts.sum() > most:
        order = np.random.default_rng(0).permutation(len(users))
        users = users[order[np.cumsum(counts[order]) <= most]]
    parts = []
    for table in store.tables("validation"):
        chosen = np.isin(table["user"].to_numpy(), users)
        parts.append(store.decode(table if chosen.all() else table.filter(pa.array(chosen))))
    return with_watched(Rows.concatenate(parts), store.schema, watch_time)


def candidates(store: FeatureStore, merged: Merged, watch_time: str) -> Rows:
    """Recalled candidates: the last label, whether the user engaged with it, is known, the impressions' are not."""
    rows = with_watched(merged.rows(store), store.schema, watch_time)
    return replace(rows, labels=np.concatenate([rows.labels, merged.positive[:, None].astype(np.float32)], axis=1))


def unlabelled(rows: Rows) -> Rows:
    """Impressions with one label more, of which nothing is known."""
    unknown = np.full((len(rows), 1), np.nan, np.float32)
    return replace(rows, labels=np.concatenate([rows.labels, unknown], axis=1))


def first_requests(recall: Path, fold: str, count: int) -> Merged:
    """The first so many requests of a fold, with their candidates."""
    merged = Merged.open(recall)
    of_fold = merged.only(merged.fold == fold)
    return of_fold.only(np.arange(len(of_fold)) < count)


def watched(schema: Schema, watch_time: str) -> tuple[str, ...]:
    """The duration that is learnt, if it is one of the log's."""
    return tuple(one for one in schema.durations if one == watch_time)


def with_watched(rows: Rows, schema: Schema, watch_time: str) -> Rows:
    """The rows with the seconds watched as their last label, if these are learnt."""
    places = [schema.durations.index(one) for one in watched(schema, watch_time)]
    return replace(rows, labels=np.concatenate([rows.labels, rows.durations[:, places]], axis=1))


def _wider(part: Part) -> tuple[Rows, Columns]:
    """Impressions beside which candidates are trained on."""
    beside = {
        name: column if column.ndim == 1 else np.pad(column, ((0, 0), (0, 1)), constant_values=1)
        for name, column in part.beside.items()
    }
    return unlabelled(part.rows), beside


def _ones(rows: Rows, loss: Loss) -> Columns:
    """Candidates count 1 each, and all that will be known of them is."""
    whole = np.ones_like(rows.labels)
    columns = {"known": whole, "gained": whole} if loss.delay else {}
    return {**columns, "weight": whole[:, 0]} if loss.repeat_weight else columns
