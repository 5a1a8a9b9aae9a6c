"""R7: the two-tower route, with an index over the items' vectors.

A row is something that a user engaged with, and the user is described as of just before it. List-wise, its negatives
are the other rows' items and drawn ones (mixed negative sampling, Yang et al., WWW 2020); by row, drawn ones alone;
the full softmax has the whole catalogue. `losses` and `sampling` say how.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.schema import Schema
from models.two_tower import TwoTower
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import InputError
from pipeline.ranking.batches import Batch, Encoder
from pipeline.ranking.carry import Champion, Known, remember
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import index as nearest
from pipeline.recall import index_choice, losses, trained
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.sampling import HARD, Cut, Sampler
from pipeline.recall.snapshot import Snapshot, available

SETTINGS = "two_tower.json"
VALIDATION_USERS = 2_000
CUTOFF = 50
CHUNK = 8_192


@dataclass(frozen=True)
class Sample:
    """B rows, and the S items of the batch: the rows' own first, or the whole catalogue, in which `own` (B,) are the
    rows' own."""

    users: Batch
    items: Batch
    item: Tensor
    log_q: Tensor
    own: Tensor


def train(
    features: Path,
    out: Path,
    *,
    positive: str,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    width: int = 32,
    epochs: int = 3,
    batch_size: int = 256,
    learning_rate: float = 0.003,
    temperature: float = 0.1,
    loss: losses.Name = "listwise",
    negatives: int | None = None,
    hard: float = HARD,
    earlier: str = "",
    checkpoints: Path | None = None,
    champion: Path | None = None,
) -> dict[str, float]:
    """Train on the engaged rows of the train slice and write the weights of the epoch with the best recall@50 on
    validation. With a `champion`, an earlier model's folder, training goes on from it, on the rows since.

    `negatives` are drawn beside each batch, or for each row by the losses by row (`losses.NEGATIVES` says how many by
    default). With `earlier`, the latest.json of an earlier run, the part `hard` of them is what ranking cut there.

    Raises `InputError` when the train slice has no positive of the task, for an unknown loss, and where the earlier run
    has nothing to tell.
    """
    losses.check("two_tower", loss)
    store = FeatureStore.open(features)
    now, old = Known.of(store), Champion.read(champion) if champion else None
    rows = engaged(store, "train", positive)
    if old:
        rows = rows.take(rows.time >= old.known.until)
    if not len(rows):
        raise InputError(f"{features}: no row of the train slice has {positive} = 1; choose another task")
    catalogue = available(store, store.slices["validation"])["item"].to_numpy()
    cut = Cut.read(Path(earlier), store) if earlier else None
    torch.manual_seed(seed)
    model = make(store.schema, width, content_width(store))
    memory = old.into(model, now) if old else {}
    encoder = Encoder(store)
    items = every_item(store, encoder)
    sampler = Sampler.of(rows.item, catalogue, len(items["fields"]), users=rows.user, cut=cut, hard=hard)
    everything = torch.from_numpy(np.union1d(catalogue, rows.item)).long()

    def batches(epoch: int) -> Iterator[Sample]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        chance = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        order = torch.randperm(len(rows), generator=generator)
        own, user = torch.from_numpy(rows.item).long(), torch.from_numpy(rows.user).long()
        order = order[chance[order] < sampler.keep[own[order]]]
        for index in torch.split(order, batch_size):
            if loss == "full":
                item, log_q = everything, torch.zeros(len(everything))
                place = torch.searchsorted(everything, own[index])
            else:
                drawn, expected = losses.drawn(loss, len(index), negatives, len(everything))
                item = torch.cat([own[index], sampler.draw(user[index], drawn, generator)])
                log_q, place = sampler.log_q(item, *expected), torch.arange(len(index))
            batch = {name: values[item] for name, values in items.items()}
            yield Sample(users=encoder(rows, index), items=batch, item=item, log_q=log_q, own=place)

    def of_sample(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, TwoTower)
        users, vectors = model.user(sample.users), model.item(sample.items)
        if loss == "full":
            return losses.full_softmax(users, vectors, sample.own, temperature=temperature)
        return losses.LOSSES[loss](users, vectors, sample.item, sample.log_q, temperature=temperature)

    held_out = first_of_each_user(engaged(store, "validation", positive), VALIDATION_USERS, seed)
    known = available(store, store.slices["test"])["item"].to_numpy()

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, TwoTower)
        users = user_vectors(model, encoder, store, held_out.user, held_out.domain, held_out.time)
        return {f"recall_{CUTOFF}": hit_rate(users, item_vectors(model, items), held_out.item, known, CUTOFF)}

    fitted = fit_model(
        model,
        batches,
        of_sample,
        validate,
        steps=-(-len(rows) // batch_size),
        rows=len(rows),
        epochs=epochs,
        learning_rate=learning_rate,
        monitor=f"recall_{CUTOFF}",
        log=log,
        memory=memory,
        checkpoints=checkpoints,
    )
    told = {"width": width, "temperature": temperature, "content": content_width(store), "epoch": fitted.epoch}
    trained.save(model, out, SETTINGS, {**told, **fitted.metrics})
    remember(now, fitted.memory, out)
    return {"positives": len(rows), "epoch": fitted.epoch, **fitted.metrics}


def fit(snapshot: Snapshot, folder: Path, *, model: Path, index: str = "auto") -> None:
    """Write the index of the available items' vectors, and the model beside it.

    `index` is what `index_choice.make` says; "auto" is chosen for users of the history, as they ask now.
    """
    trained.copy(model, folder, SETTINGS)
    store, encoder = snapshot.store, Encoder(snapshot.store)
    towers = load_model(folder, store.schema)
    vectors = item_vectors(towers, every_item(store, encoder))
    ids = snapshot.items["item"].to_numpy()
    asked = Requests.sample(snapshot, index_choice.QUERIES, domains=len(store.schema.domains))
    queries = user_vectors(towers, encoder, store, asked.user, asked.domain, asked.time)
    trained.write_index(folder, vectors[ids], ids, index, queries, name=Path(__file__).stem)


@dataclass(frozen=True)
class Vectors:
    """A trained two-tower, the index of its items' vectors, and the store that knows the users."""

    model: TwoTower
    index: nearest.Nearest
    store: FeatureStore
    encoder: Encoder

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items nearest to each user, scored by the cosine; nothing in an unknown domain."""
        known = requests.domain >= 0
        found = Found(np.full((len(known), k), NOTHING, np.int32), np.zeros((len(known), k), np.float32))
        if known.any():
            asking = requests.user[known], requests.domain[known], requests.time[known]
            vectors = user_vectors(self.model, self.encoder, self.store, *asking)
            found.items[known], found.scores[known] = self.index.search(vectors, k)
        return found


def load(folder: Path, store: FeatureStore) -> Route:
    """Raises `InputError` for an index that does not fit the model beside it."""
    model = load_model(folder, store.schema)
    return Vectors(model, trained.load_index(folder, model.embed.table.embedding_dim), store, Encoder(store))


def make(schema: Schema, width: int, content: int) -> TwoTower:
    return TwoTower(schema, width=width, content=content)


def load_model(folder: Path, schema: Schema) -> TwoTower:
    """The model in a folder, for scoring."""
    settings = json.loads((folder / SETTINGS).read_text())
    return trained.load(make(schema, settings["width"], settings["content"]), folder)


def engaged(store: FeatureStore, slice_name: str, positive: str) -> Rows:
    """The rows of a slice on which a known item had the positive task; the towers read no numbers, so without them."""
    rows = store.log(slice_name)
    chosen = (rows.labels[:, store.schema.labels.index(positive)] > 0) & (rows.item > 0)
    return replace(rows, numbers=rows.numbers[:, :0]).take(chosen)


def first_of_each_user(rows: Rows, users: int, seed: int) -> Rows:
    """The first row of each of up to `users` users, drawn at random."""
    _, first = np.unique(rows.user, return_index=True)
    chosen = np.random.default_rng(seed).permutation(first)[:users]
    return rows.take(np.sort(chosen))


def every_item(store: FeatureStore, encoder: Encoder) -> Batch:
    """All I items of the catalogue as the item tower reads them, row = item number."""
    size, schema = len(store.items["code_item_id"]), store.schema
    nobody = np.zeros(size, np.int32)
    rows = Rows(
        user=nobody,
        item=np.arange(size, dtype=np.int32),
        domain=nobody.astype(np.int16),
        time=nobody.astype(np.int64),
        context=np.zeros((size, len(schema.positions("context", "cross"))), np.int32),
        numbers=np.zeros((size, 0), np.float32),
        ends={sequence.name: nobody.astype(np.int64) for sequence in schema.sequences},
        lengths={sequence.name: nobody for sequence in schema.sequences},
        labels=np.zeros((size, len(schema.labels)), np.float32),
        durations=np.zeros((size, len(schema.durations)), np.float32),
    )
    batch = encoder(rows)
    return {name: batch[name] for name in ("fields", "numbers", "content") if name in batch}


def content_width(store: FeatureStore) -> int:
    return int(store.items["content"].shape[1]) if "content" in store.items else 0


@torch.inference_mode()
def user_vectors(
    model: TwoTower, encoder: Encoder, store: FeatureStore, user: np.ndarray, domain: np.ndarray, time: np.ndarray
) -> np.ndarray:
    """Users (N,) in a domain as of `time`: (N, D) float32."""
    parts = []
    for begin in range(0, max(len(user), 1), CHUNK):
        some, where, when = (column[begin : begin + CHUNK] for column in (user, domain, time))
        batch = encoder.users(some, where, when, store.pointers(some, when))
        parts.append(model.user(batch).float().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def item_vectors(model: TwoTower, items: Batch) -> np.ndarray:
    """All I items: (I, D) float32."""
    chunks = torch.split(torch.arange(len(items["fields"])), CHUNK)
    parts = [model.item({name: values[index] for name, values in items.items()}) for index in chunks]
    return torch.cat(parts).float().numpy()


def hit_rate(users: np.ndarray, items: np.ndarray, target: np.ndarray, known: np.ndarray, cutoff: int) -> float:
    """Share of N users whose target item is among the `cutoff` nearest of the known items; 0 when there is no user."""
    places = []
    for index in torch.split(torch.arange(len(users)), 500):
        own = (users[index] * items[target[index]]).sum(axis=1, keepdims=True)
        better = users[index] @ items[known].T > own + 1e-6
        places.append(better.sum(axis=1))
    return float((np.concatenate(places) < cutoff).mean()) if places and len(users) else 0.0
