"""R7, R17 and R18: the two-tower route, trained list-wise, with an index over the items' vectors.

A row is something that a user engaged with, and the user is described as of just before it. Its negatives are the
other rows' items and items drawn from the whole catalogue with p ∝ (count + 1)^¾ (mixed negative sampling, Yang et
al., WWW 2020). What was shown and not engaged with is no negative: it had been recalled, rightly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.schema import Schema
from models.two_tower import TwoTower
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import InputError, hash_file, write_json
from pipeline.ranking.batches import Batch, Encoder
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import index as nearest
from pipeline.recall import index_choice
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import Snapshot, available

WEIGHTS, SETTINGS, INDEX = "model.safetensors", "two_tower.json", "index"
FLATTEN = 0.75
HOT = 10.0
VALIDATION_USERS = 2_000
CUTOFF = 50
SAMPLED_USERS = 500
CHUNK = 8_192


def listwise_loss(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor, *, temperature: float) -> Tensor:
    """Sampled softmax: the cross-entropy of each row's own item among the S sampled ones.

    `user` (B, D) and `item` (S, D) are vectors, of which `item`'s first B are the rows' own; `item_id` (S,) tells
    copies of the row's own item, which are no negatives (accidental hits); `log_q` (S,) is the log of how often an
    item is expected among the samples, up to a constant. It is subtracted from the logit, outside the temperature
    (Bengio & Senécal 2008; Yi et al., RecSys 2019): logit = cosine / temperature − log q.

    When every item is sampled once this is the full softmax.
    """
    with torch.autocast(user.device.type, enabled=False):
        logits = torch.addmm(-log_q, user.float() / temperature, item.float().T)
    rows = torch.arange(len(user), device=user.device)
    number = item_id.int()
    copies = number[: len(user), None] == number
    copies[rows, rows] = False
    return cross_entropy(logits.masked_fill_(copies, -torch.inf), rows)


@dataclass(frozen=True)
class Sampler:
    """How items come into a batch: `positive` (I,) and `negative` (I,) are their shares among the rows' own items and
    among the drawn ones, `keep` (I,) the chance that a row with this item is used in an epoch."""

    positive: Tensor
    negative: Tensor
    keep: Tensor

    @classmethod
    def of(cls, items: np.ndarray, catalogue: np.ndarray, size: int) -> Sampler:
        """From the items of the positive rows and the items that may be drawn, all numbers below `size`.

        A row whose item has more than ten times the mean share is kept with word2vec's probability √(t/f) + t/f, t
        being that bound (Mikolov et al. 2013, in the form of their code).
        """
        count = torch.from_numpy(np.bincount(items, minlength=size)).double()
        relative = HOT * count.sum() / max(len(catalogue), 1) / count
        keep = (relative.sqrt() + relative).clamp(max=1.0)
        kept = count * keep.nan_to_num(0.0)
        drawn = torch.zeros(size, dtype=torch.float64)
        known = torch.tensor(catalogue)
        drawn[known] = (count[known] + 1) ** FLATTEN
        return cls(kept / kept.sum(), drawn / drawn.sum(), keep)

    def log_q(self, item: Tensor, rows: int, drawn: int) -> Tensor:
        """Log of how often each item is expected in a batch of so many rows and drawn items.

        One share for both kinds of samples, that of their mixture (the balance heuristic, Veach & Guibas 1995): a
        rare item that happens to be a row's own does not count for a thousand.
        """
        return (rows * self.positive[item] + drawn * self.negative[item]).log().float()


@dataclass(frozen=True)
class Sample:
    """B rows, and the S items of the batch, the rows' own first."""

    users: Batch
    items: Batch
    item: Tensor
    log_q: Tensor


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
    negatives: int = 1024,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Train on the engaged rows of the train slice, `negatives` drawn items beside each batch, and write the weights of
    the epoch with the best recall@50 on validation.

    Raises `InputError` when the train slice has no positive of the task.
    """
    store = FeatureStore.open(features)
    rows = engaged(store, "train", positive)
    if not len(rows):
        raise InputError(f"{features}: no row of the train slice has {positive} = 1; choose another task")
    catalogue = available(store, store.slices["validation"])["item"].to_numpy()
    torch.manual_seed(seed)
    model = make(store.schema, width, content_width(store))
    encoder = Encoder(store)
    items = every_item(store, encoder)
    sampler = Sampler.of(rows.item, catalogue, len(items["fields"]))

    def batches(epoch: int) -> Iterator[Sample]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        chance = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        order = torch.randperm(len(rows), generator=generator)
        own = torch.from_numpy(rows.item).long()
        order = order[chance[order] < sampler.keep[own[order]]]
        for index in torch.split(order, batch_size):
            drawn = torch.multinomial(sampler.negative, negatives, replacement=True, generator=generator)
            item = torch.cat([own[index], drawn])
            yield Sample(
                users=encoder(rows, index),
                items={name: values[item] for name, values in items.items()},
                item=item,
                log_q=sampler.log_q(item, len(index), negatives),
            )

    def loss(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, TwoTower)
        users, items = model.user(sample.users), model.item(sample.items)
        return listwise_loss(users, items, sample.item, sample.log_q, temperature=temperature)

    held_out = first_of_each_user(engaged(store, "validation", positive), VALIDATION_USERS, seed)
    known = available(store, store.slices["test"])["item"].to_numpy()

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, TwoTower)
        users = user_vectors(model, encoder, held_out)
        return {f"recall_{CUTOFF}": hit_rate(users, item_vectors(model, items), held_out.item, known, CUTOFF)}

    fitted = fit_model(
        model,
        batches,
        loss,
        validate,
        steps=-(-len(rows) // batch_size),
        rows=len(rows),
        epochs=epochs,
        learning_rate=learning_rate,
        monitor=f"recall_{CUTOFF}",
        log=log,
        checkpoints=checkpoints,
    )
    told = {"width": width, "temperature": temperature, "content": content_width(store), "epoch": fitted.epoch}
    save(model, out, {**told, **fitted.metrics})
    return {"positives": len(rows), "epoch": fitted.epoch, **fitted.metrics}


def fit(snapshot: Snapshot, folder: Path, *, model: Path, index: str = "auto") -> None:
    """Write the index of the available items' vectors, and the model beside it.

    `index` is what `index_choice.make` says; "auto" is chosen for users of the history, as they ask now.
    """
    for name in (WEIGHTS, SETTINGS):
        shutil.copyfile(model / name, folder / name)
    store, encoder = snapshot.store, Encoder(snapshot.store)
    towers = load_model(folder, store.schema)
    vectors = item_vectors(towers, every_item(store, encoder))
    ids = snapshot.items["item"].to_numpy()
    users = np.random.default_rng(0).permutation(snapshot.history["user"].unique(maintain_order=True).to_numpy())
    users = users[:SAMPLED_USERS]
    domains = (np.arange(len(users)) % len(store.schema.domains)).astype(np.int16)
    asking = store.users_at(users, domains, np.full(len(users), snapshot.time))
    queries = user_vectors(towers, encoder, asking)
    made = index_choice.make(
        vectors[ids], ids, index, queries, model=hash_file(folder / WEIGHTS), name=Path(__file__).stem
    )
    (folder / INDEX).mkdir()
    made.save(folder / INDEX)


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
        rows = self.store.users_at(requests.user[known], requests.domain[known], requests.time[known])
        found = Found(np.full((len(known), k), NOTHING, np.int32), np.zeros((len(known), k), np.float32))
        if len(rows):
            found.items[known], found.scores[known] = self.index.search(user_vectors(self.model, self.encoder, rows), k)
        return found


def load(folder: Path, store: FeatureStore) -> Route:
    """Raises `InputError` for an index that does not fit the model beside it."""
    model = load_model(folder, store.schema)
    index = nearest.load(folder / INDEX, model.embed.table.embedding_dim, hash_file(folder / WEIGHTS))
    return Vectors(model, index, store, Encoder(store))


def make(schema: Schema, width: int, content: int) -> TwoTower:
    return TwoTower(schema, width=width, content=content)


def save(model: TwoTower, folder: Path, settings: dict[str, object]) -> None:
    """Write the weights and the settings that the model was made and trained with."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / SETTINGS, settings)


def load_model(folder: Path, schema: Schema) -> TwoTower:
    """The model in a folder, for scoring."""
    from safetensors.torch import load_file

    settings = json.loads((folder / SETTINGS).read_text())
    model = make(schema, settings["width"], settings["content"])
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


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
def user_vectors(model: TwoTower, encoder: Encoder, rows: Rows) -> np.ndarray:
    """The users of N rows: (N, D) float32."""
    if len(rows) <= CHUNK:
        return model.user(encoder(rows)).float().numpy()
    parts = [model.user(encoder(rows, index)) for index in torch.split(torch.arange(len(rows)), CHUNK)]
    return torch.cat(parts).float().numpy()


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
