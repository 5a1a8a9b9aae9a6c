"""What the routes share whose tower reads a user's history alone (`models.sequential`): training on packed histories,
and an index asked with each of a user's vectors.

All events of a history are trained on at once, each by what came before it. The vectors are made when they are asked
for, from the history that the request brings, so that an event counts with the next request. What was taken is not
recalled again; users without a history, and items that came after training, are left to other routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from models.sequential import HistoryTower
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.fit import Log
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import index as nearest
from pipeline.recall import index_choice, losses, trained
from pipeline.recall.faiss_engine import Flat
from pipeline.recall.item_matrix import Engagements
from pipeline.recall.markov import transitions
from pipeline.recall.route import NOTHING, Found, Requests, best
from pipeline.recall.sampling import Cut, Sampler
from pipeline.recall.snapshot import Snapshot, take

SETTINGS = "tower.json"
MINUTE = 60_000_000
VALIDATION_USERS = 2_000
CUTOFF = 50
CHUNK = 512
POOL = 20
SKIPS, SKIP_DECAY = 20, 0.7

Integers = npt.NDArray[np.integer[Any]]
Make = Callable[[dict[str, Any]], HistoryTower]
"""Makes a tower from its settings, to which `train` adds `items`, how many item numbers there are, and `length`."""


@dataclass(frozen=True)
class Training:
    """How a tower is trained: of a history the last `length` events are read; items begin as `spectral` vectors of the
    length `start`, or at random where it is 0; logits are divided by `temperature`; `negatives`, `hard` and `earlier`
    are those of `two_tower.train`."""

    length: int
    start: float
    epochs: int
    batch_size: int
    learning_rate: float
    embedding_decay: float
    temperature: float
    loss: losses.Name
    negatives: int | None
    hard: float
    earlier: str


@dataclass(frozen=True)
class Known:
    """What a tower is trained on: histories (`user`, `item`, `time`, each (S,), by user and oldest first), `held_out`
    requests and the item that each took next, `target`; the items that may be recalled, and how many numbers there
    are."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    held_out: Requests
    target: npt.NDArray[np.int32]
    catalogue: npt.NDArray[np.int32]
    size: int

    @classmethod
    def of_store(cls, store: FeatureStore, positive: str, seed: int) -> Known:
        """What was known when the validation slice began, and what up to 2,000 users took first in it."""
        before = take(store, store.slices["validation"], positive)
        later = pl.DataFrame(store.columns(["user", "item", "domain", positive], "validation"))
        later = later.filter((pl.col(positive) > 0) & (pl.col("user") > 0) & (pl.col("item") > 0))
        first = later.unique("user", keep="first", maintain_order=True).sort("user")
        return cls._of(before, before.history, _some(first, seed), len(store.items["code_item_id"]))

    @classmethod
    def of_snapshot(cls, snapshot: Snapshot, seed: int) -> Known:
        """A snapshot's histories, but for the last events of up to 2,000 users, which are held out."""
        history = snapshot.history.with_columns(row=pl.int_range(pl.len()))
        last = history.filter(pl.len().over("user") > 1).group_by("user", maintain_order=True).last()
        asked = _some(last.with_columns(domain=pl.lit(0)), seed)
        rest = history.filter(~pl.col("row").is_in(asked["row"].implode()))
        highest = [table["item"].to_numpy().max(initial=0) for table in (snapshot.history, snapshot.items)]
        return cls._of(snapshot, rest, asked, int(max(highest)) + 1)

    @classmethod
    def _of(cls, snapshot: Snapshot, history: pl.DataFrame, asked: pl.DataFrame, size: int) -> Known:
        return cls(
            user=history["user"].to_numpy(),
            item=history["item"].to_numpy(),
            time=history["time"].to_numpy(),
            held_out=Requests.of(replace(snapshot, history=history), asked),
            target=asked["item"].to_numpy(),
            catalogue=snapshot.items["item"].to_numpy(),
            size=size,
        )


@dataclass(frozen=True)
class Windows:
    """Parts of histories, of W: the events from `begin` to before `end`, of which all but the first are to be found."""

    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    @classmethod
    def of(cls, user: Integers, length: int) -> Windows:
        """From the events' users (S,), each one's together: of at most `length` + 1 events, one event in common with
        the next window, so that each but a user's first is found once."""
        first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]][: len(user)])
        last = np.r_[first[1:], len(user)][: len(first)]
        count = -(-(last - first - 1) // length)
        owner = np.repeat(np.arange(len(first)), count)
        end = last[owner] - length * (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count))
        return cls(np.maximum(first[owner], end - length - 1), end)

    def __len__(self) -> int:
        return len(self.begin)

    def batches(self, size: int, generator: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        """Windows by number, `size` at a time, in random order, those of like lengths together."""
        found = []
        for pool in np.split(generator.permutation(len(self)), range(size * POOL, len(self), size * POOL)):
            pool = pool[np.argsort((self.end - self.begin)[pool], kind="stable")]
            found += np.split(pool, range(size, len(pool), size))
        return [found[place] for place in generator.permutation(len(found))]


@dataclass(frozen=True)
class Sample:
    """B windows padded to L events (`item`, `time` as `models.sequential` wants them), where the N events lie whose
    next is to be found (`row`, `place`), and the S items of the batch as in `two_tower.Sample`: numbers `sampled`,
    `log_q`, and `own` (N,)."""

    item: Tensor
    time: Tensor
    row: Tensor
    place: Tensor
    sampled: Tensor
    log_q: Tensor
    own: Tensor


def train(
    source: Path | Snapshot,
    out: Path,
    make: Make,
    *,
    route: str,
    settings: dict[str, Any],
    training: Training,
    positive: str,
    seed: int,
    log: Log,
    checkpoints: Path | None,
) -> dict[str, float]:
    """Train the tower that `make` makes, and write the weights of the epoch with the best NDCG@50 of what is held
    out: the first that users took in the validation slice of a features folder, or the last of a snapshot's histories.

    `settings` are kept beside the weights for `make`.

    Raises `InputError` when no user has two events, for an unknown loss, and where the earlier run has nothing to tell.
    """
    losses.check(route, training.loss)
    store = FeatureStore.open(source) if isinstance(source, Path) else source.store
    known = Known.of_snapshot(source, seed) if isinstance(source, Snapshot) else Known.of_store(store, positive, seed)
    windows = Windows.of(known.user, training.length)
    if not len(windows):
        raise InputError(f"{route}: no user has two events to learn from; choose another task or a longer log")
    cut = Cut.read(Path(training.earlier), store) if training.earlier else None
    targets = 1 + np.flatnonzero(known.user[1:] == known.user[:-1])
    users = known.user[targets]
    sampler = Sampler.of(known.item[targets], known.catalogue, known.size, users=users, cut=cut, hard=training.hard)
    torch.manual_seed(seed)
    settings = {**settings, "items": known.size, "length": training.length}
    model = make(settings)
    if training.start:
        model.start(torch.from_numpy(training.start * spectral(known, model.item_vectors().shape[1])))

    def of_sample(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, HistoryTower)
        vectors = model(sample.item, sample.time)[sample.row, sample.place]
        items = model.item_vectors()[sample.sampled]
        user = nearest_interest(vectors, items[sample.own])
        if training.loss == "full":
            return losses.full_softmax(user, items, sample.own, temperature=training.temperature)
        return losses.LOSSES[training.loss](user, items, sample.sampled, sample.log_q, temperature=training.temperature)

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, HistoryTower)
        asked = Tower(model, nearest.build(*vectors_of(model, known.catalogue), Flat()), training.length)
        found = asked.recall(known.held_out, CUTOFF)
        hits = found.items == known.target[:, None]
        gain = hits / np.log2(np.arange(hits.shape[1]) + 2)
        asking = max(len(hits), 1)
        return {f"recall_{CUTOFF}": float(hits.sum() / asking), f"ndcg_{CUTOFF}": float(gain.sum() / asking)}

    fitted = fit_model(
        model,
        samples(known, windows, sampler, training, seed),
        of_sample,
        validate,
        steps=-(-len(windows) // training.batch_size),
        rows=len(windows),
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        embedding_decay=training.embedding_decay,
        monitor=f"ndcg_{CUTOFF}",
        log=log,
        patience=training.epochs,
        checkpoints=checkpoints,
    )
    trained.save(model, out, SETTINGS, {**settings, "epoch": fitted.epoch, **fitted.metrics})
    return {"positives": len(targets), "epoch": fitted.epoch, **fitted.metrics}


def samples(
    known: Known, windows: Windows, sampler: Sampler, training: Training, seed: int
) -> Callable[[int], Iterator[Sample]]:
    """The batches of an epoch, which depend on the seed and its number alone."""
    everything = torch.from_numpy(np.union1d(known.catalogue, known.item)).long()
    minutes = known.time // MINUTE

    def epoch(number: int) -> Iterator[Sample]:
        random = np.random.default_rng([seed, number])
        generator = torch.Generator().manual_seed(seed * 1_000 + number)
        for index in windows.batches(training.batch_size, random):
            begin, count = windows.begin[index], (windows.end - windows.begin)[index]
            item, time = (torch.from_numpy(padded(each, begin, count)) for each in (known.item, minutes))
            target = item[:, 1:].long()
            kept = torch.rand(target.shape, generator=generator, dtype=torch.float64) < sampler.keep[target]
            row, place = torch.nonzero(kept & (target > 0), as_tuple=True)
            if not len(row):
                continue
            wanted = target[row, place]
            if training.loss == "full":
                sampled, log_q = everything, torch.zeros(len(everything))
                own = torch.searchsorted(everything, wanted)
            else:
                drawn, expected = losses.drawn(training.loss, len(wanted), training.negatives, len(everything))
                user = torch.from_numpy(known.user[begin]).long()[row]
                sampled = torch.cat([wanted, sampler.draw(user, drawn, generator)])
                log_q, own = sampler.log_q(sampled, *expected), torch.arange(len(wanted))
            yield Sample(item[:, :-1].long(), time, row, place, sampled, log_q, own)

    return epoch


def fit(snapshot: Snapshot, folder: Path, make: Make, *, route: str, model: Path, index: str) -> None:
    """Write the index of the available items' vectors, as `index_choice.make` says, and the model beside it."""
    trained.copy(model, folder, SETTINGS)
    tower, settings = load_model(folder, make)
    vectors, ids = vectors_of(tower, snapshot.items["item"].to_numpy())
    history = known_items(Requests.sample(snapshot, index_choice.QUERIES), len(tower.item_vectors()))
    asking = np.flatnonzero(np.diff(history.offsets))
    queries = interests(tower, history, asking, settings["length"]) if len(asking) else vectors[:0]
    queries = queries.reshape(-1, vectors.shape[1])
    trained.write_index(folder, vectors, ids, index, queries, name=route)


def spectral(known: Known, width: int) -> npt.NDArray[np.float32]:
    """Where items begin, of length 1 or 0: the leading eigenvectors of D^−½ (T + Tᵀ) D^−½, times the roots of their
    eigenvalues (size, width).

    T holds what follows what in the histories (`markov.transitions`), D its degrees. Their products are nearly what
    Markov's counts say, and training goes on from there: on Amazon Beauty ten seconds of it come to a Recall@10 of .064
    on the validation events, and to .023 from random vectors.
    """
    events = Engagements(known.user.astype(np.int64), known.item.astype(np.int64), np.ones(known.size, bool))
    follow = transitions(events, skips=SKIPS, skip_decay=SKIP_DECAY)
    both = (follow + follow.T).astype(np.float64)
    degree = both.sum(axis=1)
    scale = sp.diags_array(np.where(degree > 0, np.maximum(degree, 1e-12) ** -0.5, 0.0))
    found = np.zeros((known.size, width), np.float32)
    leading = min(width, known.size - 1)
    values, vectors = eigsh(scale @ both @ scale, k=leading, which="LA", v0=np.ones(known.size), tol=1e-2)
    found[:, :leading] = vectors * np.sqrt(np.maximum(values, 0.0))
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(norm > 1e-6, norm, np.inf)
    return found


@dataclass(frozen=True)
class Tower:
    """A trained tower that reads the last `length` events, and the index of its items' vectors."""

    model: HistoryTower
    index: nearest.Nearest
    length: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items not taken with the highest product with any of the user's vectors, the highest being the
        score."""
        size = len(self.model.item_vectors())
        history = known_items(requests, size)
        asking = np.flatnonzero(np.diff(history.offsets))
        if not len(asking):
            return Found(np.zeros((len(requests), 0), np.int32), np.zeros((len(requests), 0), np.float32))
        vectors = interests(self.model, history, asking, self.length)
        most = k + int(np.diff(history.offsets).max())
        ids, scores = self.index.search(vectors.reshape(-1, vectors.shape[2]), most)
        row = np.repeat(asking, vectors.shape[1] * most)
        item, score = ids.ravel(), scores.ravel()
        key = row * size + item
        new = (item != NOTHING) & ~np.isin(key, history.row * size + history.items)
        row, item, score, key = row[new], item[new], score[new], key[new]
        if vectors.shape[1] > 1:
            order = np.argsort(-score, kind="stable")
            first = order[np.unique(key[order], return_index=True)[1]]
            row, item, score = row[first], item[first], score[first]
        return best(row, item, score, requests=len(requests), k=k)


def load(folder: Path, make: Make) -> Tower:
    model, settings = load_model(folder, make)
    width = model.item_vectors().shape[1]
    return Tower(model, trained.load_index(folder, width), settings["length"])


def load_model(folder: Path, make: Make) -> tuple[HistoryTower, dict[str, Any]]:
    """The model in a folder, for scoring, and its settings."""
    settings = json.loads((folder / SETTINGS).read_text())
    return trained.load(make(settings), folder), settings


def nearest_interest(interests: Tensor, item: Tensor) -> Tensor:
    """Of each row's K vectors (N, K, D) the one whose product with its item (N, D) is highest: (N, D)."""
    if interests.shape[1] == 1:
        return interests[:, 0]
    chosen = torch.einsum("nkd,nd->nk", interests, item).argmax(dim=1)
    return interests[torch.arange(len(chosen)), chosen]


@torch.inference_mode()
def interests(model: HistoryTower, history: Requests, asking: Integers, length: int) -> npt.NDArray[np.float32]:
    """The vectors of the requests `asking` (A,), each of which has a history, at the requests' own time: (A, K, D)."""
    end = history.offsets[asking + 1]
    count = np.minimum(end - history.offsets[asking], length)
    order = np.argsort(count, kind="stable")
    minutes = history.times // MINUTE
    parts = []
    for index in np.split(order, range(CHUNK, len(order), CHUNK)):
        own, begin = count[index], end[index] - count[index]
        item = padded(history.items, begin, own)
        time = np.pad(padded(minutes, begin, own), ((0, 0), (0, 1)))
        time[np.arange(len(index)), own] = history.time[asking[index]] // MINUTE
        vectors = model(torch.from_numpy(item).long(), torch.from_numpy(time))
        parts.append(vectors[torch.arange(len(index)), torch.from_numpy(own - 1)])
    found: npt.NDArray[np.float32] = torch.cat(parts).float().numpy()
    return found[np.argsort(order)]


@torch.inference_mode()
def vectors_of(model: HistoryTower, items: Integers) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The vectors (N, D) and numbers (N,) of those of the items that the model knows."""
    vectors = model.item_vectors().float().numpy()
    ids = items[items < len(vectors)].astype(np.int64)
    return vectors[ids], ids


def known_items(requests: Requests, size: int) -> Requests:
    """The requests with only those events whose items have numbers below `size`."""
    kept = requests.items < size
    before = np.r_[0, np.cumsum(kept)]
    items, times = requests.items[kept], requests.times[kept]
    return replace(requests, items=items, times=times, offsets=before[requests.offsets])


def padded(values: Integers, begin: Integers, count: Integers) -> Integers:
    """Row r holds `values[begin[r]:begin[r] + count[r]]` and then zeros."""
    place = np.arange(count.max(initial=0))
    index = np.minimum(begin[:, None] + place, len(values) - 1)
    return np.where(place < count[:, None], values[index], values.dtype.type(0))


def _some(asked: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Up to 2,000 of the rows, drawn at random, in their order."""
    drawn = np.random.default_rng(seed).permutation(len(asked))[:VALIDATION_USERS]
    return asked[np.sort(drawn)]
