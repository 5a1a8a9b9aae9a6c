"""R15, generative retrieval (`models.generative`): a decoder says the semantic id of what comes next.

Ids come of the items' content vectors or, where the catalogue has none, of who engaged with what before the validation
slice (`semantic_ids`). The beam keeps to ids of available items, so that no id is said that nothing has. Items without
a vector have no id: they are not recalled, and passed over in histories.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from models.generative import SemanticDecoder
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.batches import Batch
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import trained
from pipeline.recall.histories import NO_ITEM, Histories, engagements, held_out, hit_share
from pipeline.recall.item_matrix import Engagements
from pipeline.recall.paths import Trie, stacked
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.semantic_ids import NO_ID, Codes, Vectors, engagement_vectors, semantic_ids
from pipeline.recall.snapshot import Snapshot, take

SETTINGS, IDS = "generative.json", "ids.npy"
CUTOFF = 50
VALIDATION_USERS = 1_000
CHUNK = 64
FACTORS = 32


@dataclass(frozen=True)
class Sample:
    """B histories as the decoder reads them, and the ids (B, levels) of what came next."""

    history: Batch
    codes: Tensor


def train(
    features: Path,
    out: Path,
    *,
    positive: str,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    levels: int = 3,
    codes: int = 64,
    width: int = 64,
    length: int = 20,
    heads: int = 4,
    layers: int = 1,
    epochs: int = 5,
    batch_size: int = 512,
    learning_rate: float = 0.003,
    examples: int = 200_000,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Give ids of `levels` codes (and one against collisions), each of up to `codes`, and train on the newest
    `examples` engagements before the validation slice, those from before the log among them. Writes the ids, and the
    weights of the epoch with the best recall@50 on validation.

    Raises `InputError` where nobody engaged with an item that has a vector.
    """
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["validation"], positive)
    vectors = vectors_of(snapshot)
    known = np.zeros(len(vectors), bool)
    known[snapshot.items["item"].to_numpy()] = True
    ids = semantic_ids(vectors, known, levels=levels, size=codes, seed=seed)
    has_id = ids[:, 0] != NO_ID
    if without := int((known & ~has_id).sum()):
        logging.getLogger(__name__).warning("%d of %d items have no vector and so no id", without, known.sum())
    rows = engagements(snapshot, examples)
    rows = rows.filter(pl.Series(has_id[rows["item"].to_numpy()], dtype=pl.Boolean))
    if rows.is_empty():
        raise InputError(
            f"{features}: before the validation slice no item with a vector has {positive} = 1; choose another task or "
            "give the items content vectors"
        )
    torch.manual_seed(seed)
    sizes = [int(ids[:, level].max()) + 1 for level in range(levels + 1)]
    hyper: dict[str, Any] = {"width": width, "length": length, "heads": heads, "layers": layers}
    hyper |= {"sizes": sizes, "domains": len(store.schema.domains)}
    model = SemanticDecoder(**hyper)
    histories, target = Histories.before(snapshot, rows), torch.from_numpy(ids[rows["item"].to_numpy()]).long()

    def batches(epoch: int) -> Iterator[Sample]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        for index in torch.randperm(len(rows), generator=generator).split(batch_size):
            yield Sample(read(histories.take(index.numpy()), ids, length), target[index])

    def loss(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, SemanticDecoder)
        tokens, there = model.history(**sample.history)
        return -model.log_items(tokens, there, sample.codes).mean()

    later, asked, wanted = held_out(store, positive, seed)
    items = with_ids(ids, later)

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, SemanticDecoder)
        found = Spoken(model, ids, Trie.of(ids[items]), items).answer(asked, CUTOFF)
        return {f"recall_{CUTOFF}": hit_share(found, wanted)}

    fitted = fit_model(
        model,
        batches,
        loss,
        validate,
        steps=-(-len(rows) // batch_size),
        rows=len(rows),
        epochs=epochs,
        patience=2,
        learning_rate=learning_rate,
        monitor=f"recall_{CUTOFF}",
        log=log,
        checkpoints=checkpoints,
    )
    np.save(out / IDS, ids)
    trained.save(model, out, SETTINGS, {"model": hyper, "epoch": fitted.epoch, **fitted.metrics})
    return {"positives": len(rows), "without_id": without, "epoch": fitted.epoch, **fitted.metrics}


def fit(snapshot: Snapshot, folder: Path, *, model: Path) -> None:
    """Write the available items in the order of their ids, beside the model and all ids."""
    trained.copy(model, folder, SETTINGS, IDS)
    np.save(folder / "items.npy", with_ids(np.load(folder / IDS), snapshot))


@dataclass(frozen=True)
class Spoken:
    """A trained decoder, the ids (I, levels) of all items, and the `items` (N,) that may be said, path n of the trie
    being the id of the n-th."""

    model: SemanticDecoder
    ids: Codes
    trie: Trie
    items: npt.NDArray[np.int32]

    def recall(self, requests: Requests, k: int) -> Found:
        """The likeliest `k` items of each request as a beam of `k` finds them, scored by log p."""
        return self.answer(Histories.of(requests), k)

    def answer(self, histories: Histories, k: int) -> Found:
        chunks = range(0, len(histories), CHUNK)
        return stacked([self._answer(histories.take(slice(first, first + CHUNK)), k) for first in chunks])

    @torch.inference_mode()
    def _answer(self, histories: Histories, k: int) -> Found:
        tokens, there = self.model.history(**read(histories, self.ids, self.model.back.num_embeddings))

        def log_shares(prefix: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            return self.model.next_code(tokens, there, torch.from_numpy(prefix)).numpy()

        found = self.trie.search(log_shares, len(histories), k)
        if not len(self.items):
            return found
        return Found(np.where(found.items == NOTHING, NOTHING, self.items[found.items]), found.scores)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    settings = json.loads((folder / SETTINGS).read_text())
    model = trained.load(SemanticDecoder(**settings["model"]), folder)
    ids, items = (np.load(folder / name, mmap_mode="r") for name in (IDS, "items.npy"))
    return Spoken(model, ids, Trie.of(ids[items]), items)


def vectors_of(snapshot: Snapshot) -> Vectors:
    """What ids are made of, for all I items (I, C): the content or, without it, who engaged with what."""
    size = len(snapshot.store.items["code_item_id"])
    if "content" in snapshot.store.items:
        return np.asarray(snapshot.store.items["content"], np.float32)
    vectors = engagement_vectors(Engagements.of(snapshot), FACTORS)
    return np.pad(vectors, ((0, size - len(vectors)), (0, 0)))


def with_ids(ids: Codes, snapshot: Snapshot) -> npt.NDArray[np.int32]:
    """The available items that have an id, in the order of their ids."""
    items: npt.NDArray[np.int32] = snapshot.items["item"].to_numpy().astype(np.int32)
    items = items[items < len(ids)]
    items = items[ids[items, 0] != NO_ID]
    ordered: npt.NDArray[np.int32] = items[np.lexsort(ids[items].T[::-1])]
    return ordered


def read(histories: Histories, ids: Codes, length: int) -> Batch:
    """Histories as the decoder reads them: the codes of the last `length` events, newest first."""
    items = histories.newest(length, len(ids))
    codes = torch.from_numpy(ids[items]).long()
    return {
        "events": codes.clamp(min=0),
        "there": torch.from_numpy(items != NO_ITEM) & (codes[:, :, 0] != NO_ID),
        "domain": torch.tensor(histories.domain).long() + 1,
    }
