"""R14, Deep Retrieval (`models.deep_retrieval`): paths of codes learnt with the items that lie on them.

Training alternates (Gao et al., CIKM 2021). Steps of the network raise log Σ_j p(path_j of the item | user). Then,
after each epoch, items are laid on paths anew by coordinate ascent on

    Σ_v N_v log Σ_j s(v, path_j)  −  penalty · Σ_path |path|⁴ / 4,     s(v, path) = Σ p(path | user)

over the N_v users who engaged with item v, p as a beam search finds it; the penalty keeps paths from being crowded.
When a snapshot is fitted, its own engagements lay the items: a new item needs some, but no training. A request's beam
search keeps to paths with available items, and their items are ordered by the network's softmax.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor, nn

from models.deep_retrieval import DeepRetrieval
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, write_json
from pipeline.ranking.batches import Batch
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import losses, trained
from pipeline.recall.histories import Histories, Reader, engagements, held_out, hit_share, sampler_of_all
from pipeline.recall.paths import Trie, grouped, ranges, stacked
from pipeline.recall.route import NOTHING, Found, Requests, Route, best
from pipeline.recall.snapshot import Snapshot, take
from pipeline.recall.two_tower import CUTOFF

SETTINGS = "deep_retrieval.json"
PARTS = ("paths", "offsets", "items", "vectors")
CONSIDERED = 48
ROUNDS = 3
CHUNK, PART = 256, 2_048

NO_PATH = -1

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """B users, and S items, the rows' own first."""

    users: Batch
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
    length: int = 20,
    depth: int = 2,
    nodes: int = 32,
    copies: int = 2,
    penalty: float = 1e-3,
    epochs: int = 8,
    batch_size: int = 512,
    learning_rate: float = 0.003,
    temperature: float = 0.1,
    negatives: int = 512,
    examples: int = 200_000,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Train on the newest `examples` engagements before the validation slice, those from before the log among them, and
    write the weights of the epoch with the best recall@50 on validation.

    Raises `InputError` where nobody engaged with anything, and for more pairs of an item and a path than 63 bits count.
    """
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["validation"], positive)
    rows = engagements(snapshot, examples)
    if rows.is_empty():
        raise InputError(f"{features}: nothing before the validation slice has {positive} = 1; choose another task")
    torch.manual_seed(seed)
    reader = Reader.of(store, length)
    if len(reader.codes) * nodes**depth >= 2**63:
        raise InputError(f"{nodes} nodes in {depth} layers are too many paths; lower the route's option nodes or depth")
    hyper: dict[str, Any] = {"width": width, "length": length, "depth": depth, "nodes": nodes, "copies": copies}
    hyper |= {"items": len(reader.codes), "content": reader.content.shape[1]}
    model = DeepRetrieval(store.schema, **hyper)
    histories, item = Histories.before(snapshot, rows), rows["item"].to_numpy()
    sampler = sampler_of_all(item, snapshot.items["item"].to_numpy(), len(reader.codes))

    def batches(epoch: int) -> Iterator[Sample]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        own = torch.tensor(item).long()
        for index in torch.randperm(len(rows), generator=generator).split(batch_size):
            drawn = torch.multinomial(sampler.negative, negatives, replacement=True, generator=generator)
            sampled = torch.cat([own[index], drawn])
            users = reader(histories.take(index.numpy()))
            yield Sample(users, sampled, sampler.log_q(sampled, len(index), negatives))

    def loss(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, DeepRetrieval)
        x = model.state(sample.users)
        items = model.item_vectors(reader.codes[sample.item], reader.content[sample.item])
        chosen = losses.listwise(model.user_vectors(x), items, sample.item, sample.log_q, temperature=temperature)
        return chosen - model.log_items(x, sample.item[: len(x)]).mean()

    later, asked, wanted = held_out(store, positive, seed)
    there = later.items["item"].to_numpy()

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, DeepRetrieval)
        laid = lay(model, reader, histories, item, penalty=penalty)
        model.paths.copy_(torch.where((laid >= 0).any(dim=(1, 2))[:, None, None], laid, model.paths))
        found = LearntPaths.of(model, reader, laid.numpy(), there, beam=CUTOFF).answer(asked, CUTOFF)
        return {f"recall_{CUTOFF}": hit_share(found, wanted)}

    fitted = fit_model(
        model,
        batches,
        loss,
        validate,
        steps=-(-len(rows) // batch_size),
        rows=len(rows),
        epochs=epochs,
        patience=epochs,
        learning_rate=learning_rate,
        monitor=f"recall_{CUTOFF}",
        log=log,
        checkpoints=checkpoints,
    )
    told = {"temperature": temperature, "penalty": penalty, "examples": examples, "epoch": fitted.epoch}
    trained.save(model, out, SETTINGS, {"model": hyper, **told, **fitted.metrics})
    return {"positives": len(rows), "epoch": fitted.epoch, **fitted.metrics}


def fit(snapshot: Snapshot, folder: Path, *, model: Path, beam: int = 100) -> None:
    """Lay the snapshot's items on the paths of a trained model, and write both; requests follow `beam` paths."""
    trained.copy(model, folder, SETTINGS)
    settings = json.loads((folder / SETTINGS).read_text())
    network = load_model(folder, snapshot.store)
    reader = Reader.of(snapshot.store, settings["model"]["length"])
    rows = engagements(snapshot, settings["examples"])
    histories, item = Histories.before(snapshot, rows), rows["item"].to_numpy()
    laid = lay(network, reader, histories, item, penalty=settings["penalty"]).numpy()
    route = LearntPaths.of(network, reader, laid, snapshot.items["item"].to_numpy(), beam=beam)
    parts: list[npt.NDArray[Any]] = [route.trie.codes, route.offsets, route.items, route.vectors]
    for name, values in zip(PARTS, parts, strict=True):
        np.save(folder / f"{name}.npy", values)
    write_json(folder / SETTINGS, {**settings, "beam": beam})


@dataclass(frozen=True)
class LearntPaths:
    """A trained network and what lies on its paths: path p has `items[offsets[p]:offsets[p + 1]]`; `vectors` (I, D) are
    those of all items."""

    model: DeepRetrieval
    reader: Reader
    trie: Trie
    offsets: Integers
    items: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.float32]
    beam: int

    @classmethod
    def of(
        cls, model: DeepRetrieval, reader: Reader, laid: Integers, there: npt.NDArray[np.integer], *, beam: int
    ) -> LearntPaths:
        """From the codes (I, J, depth) of the items' paths; only the items `there` are kept."""
        row, copy = np.nonzero(laid[there, :, 0] >= 0)
        item = there[row]
        paths, offsets, items = grouped(laid[item, copy].astype(np.int32), item.astype(np.int32))
        return cls(model, reader, Trie.of(paths), offsets, items, vectors_of(model, reader), beam)

    def recall(self, requests: Requests, k: int) -> Found:
        """The best `k` items on the likeliest `beam` paths of each request, scored by the cosine with the user."""
        return self.answer(Histories.of(requests), k)

    def answer(self, histories: Histories, k: int) -> Found:
        chunks = range(0, len(histories), CHUNK)
        return stacked([self._answer(histories.take(slice(first, first + CHUNK)), k) for first in chunks])

    @torch.inference_mode()
    def _answer(self, histories: Histories, k: int) -> Found:
        x = self.model.state(self.reader(histories))

        def log_shares(prefix: Integers) -> npt.NDArray[np.float32]:
            return self.model.next_code(x, torch.from_numpy(prefix)).numpy()

        found = self.trie.search(log_shares, len(x), self.beam)
        row, column = np.nonzero(found.items != NOTHING)
        path = found.items[row, column]
        place, owner = ranges(self.offsets[path], self.offsets[path + 1])
        size = len(self.vectors)
        row, item = np.divmod(np.unique(row[owner] * size + self.items[place]), size)
        users = self.model.user_vectors(x).numpy()
        score = np.einsum("nd,nd->n", users[row], self.vectors[item])
        return best(row, item, score, requests=len(x), k=k)


def load(folder: Path, store: FeatureStore) -> Route:
    settings = json.loads((folder / SETTINGS).read_text())
    paths, offsets, items, vectors = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in PARTS)
    reader = Reader.of(store, settings["model"]["length"])
    return LearntPaths(load_model(folder, store), reader, Trie.of(paths), offsets, items, vectors, settings["beam"])


def load_model(folder: Path, store: FeatureStore) -> DeepRetrieval:
    """The network in a folder, for scoring."""
    settings = json.loads((folder / SETTINGS).read_text())
    return trained.load(DeepRetrieval(store.schema, **settings["model"]), folder)


@torch.inference_mode()
def lay(
    model: DeepRetrieval,
    reader: Reader,
    histories: Histories,
    item: npt.NDArray[np.integer],
    *,
    penalty: float,
) -> Tensor:
    """The codes (I, J, depth) of every item's paths by N engagements, each a history and the item; -1 where an item has
    fewer, or was not engaged with."""
    keys, shares = [np.zeros(0, np.int64)], [np.zeros(0)]
    _, copies, depth = model.paths.shape
    nodes = model.nodes
    weights = nodes ** np.arange(depth - 1, -1, -1, dtype=np.int64)
    for first in range(0, len(item), PART):
        part = slice(first, first + PART)
        paths, scores = model.likeliest(model.state(reader(histories.take(part))), CONSIDERED)
        keys.append((item[part, None].astype(np.int64) * nodes**depth + paths.numpy() @ weights).ravel())
        shares.append(scores.double().exp().numpy().ravel())
    key, place = np.unique(np.concatenate(keys), return_inverse=True)
    owner, code = np.divmod(key, nodes**depth)
    score = np.bincount(place, np.concatenate(shares), minlength=len(key)).astype(np.float64)
    count = np.bincount(item, minlength=len(reader.codes))
    chosen = assign(owner, code, score, count, copies=copies, penalty=penalty)
    laid = chosen[:, :, None] // weights % nodes
    return torch.from_numpy(np.where(chosen[:, :, None] == NO_PATH, NO_PATH, laid))


def assign(
    item: Integers,
    path: Integers,
    score: npt.NDArray[np.float64],
    count: npt.NDArray[np.integer],
    *,
    copies: int,
    penalty: float,
) -> Integers:
    """The up to `copies` paths (I, copies) of each item, the best first: `NO_PATH` where there is none.

    Of N candidates, by item, `score` is s(item, path); `count` (I,) is N_v of the module's objective, which this raises
    by going through the items `ROUNDS` times, choosing one path after the other for each while all others stay.
    """
    paths, number = np.unique(path, return_inverse=True)
    first = np.searchsorted(item, np.arange(len(count) + 1))
    chosen = np.full((len(count), copies), NO_PATH, np.int64)
    _descend(first, number, score, count, penalty, ROUNDS, np.zeros(len(paths), np.int64), chosen)
    return np.where(chosen == NO_PATH, NO_PATH, path[chosen] if len(path) else NO_PATH)


@njit(cache=True)
def _descend(first, path, score, count, penalty, rounds, crowd, chosen):  # type: ignore[no-untyped-def]
    for _ in range(rounds):
        for item in range(len(count)):
            begin, end = first[item], first[item + 1]
            for copy in range(chosen.shape[1]):
                if chosen[item, copy] >= 0:
                    crowd[path[chosen[item, copy]]] -= 1
                    chosen[item, copy] = -1
            total = 0.0
            for copy in range(min(chosen.shape[1], end - begin)):
                best_gain = -np.inf
                best_place = -1
                for place in range(begin, end):
                    free = True
                    for other in range(copy):
                        free &= chosen[item, other] != place
                    size = crowd[path[place]]
                    cost = penalty * ((size + 1.0) ** 4 - float(size) ** 4) / 4
                    gain = count[item] * np.log(total + score[place]) - cost
                    if free and gain > best_gain:
                        best_gain, best_place = gain, place
                if best_place >= 0:
                    chosen[item, copy] = best_place
                    crowd[path[best_place]] += 1
                    total += score[best_place]


@torch.inference_mode()
def vectors_of(model: DeepRetrieval, reader: Reader) -> npt.NDArray[np.float32]:
    """All items' vectors (I, D)."""
    return model.item_vectors(reader.codes, reader.content).numpy()
