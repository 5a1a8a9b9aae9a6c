"""C1 and C2: a coarse two-tower ranker, distilled from the fine ranker on merged candidates.

The teacher scores all merged candidates of the `distil` requests, shown or not; the student learns the teacher's
probability (soft targets) and its order within a request (list-wise). Item vectors are computed once per moment and
kept in half precision, so that scoring thousands of candidates is one matrix product. As in the fine ranker's fusion,
recall has a say: the score is logit - w · log(place in the merge), with w tuned on the `tune` requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.coarse import Coarse
from models.schema import Schema
from pipeline.config import Coarse as Settings
from pipeline.features.store import FeatureStore, Rows
from pipeline.ranking import fine
from pipeline.ranking.batches import Batch, Encoder
from pipeline.ranking.fit import Log, fit
from pipeline.ranking.losses import listwise_distillation
from pipeline.ranking.merged import Merged

TEMPERATURE = 0.5
TOP = 50
CHUNK = 1_000_000
PRIORS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0)


@dataclass(frozen=True)
class CoarseRanker:
    """A trained coarse ranker and the weight of the place in the merge."""

    model: Coarse
    prior: float

    def score(self, encoder: Encoder, store: FeatureStore, merged: Merged) -> np.ndarray:
        """Scores (N,) of merged candidates."""
        return with_recall(logits(self.model, encoder, store, merged), merged, self.prior)


@dataclass(frozen=True)
class Lists:
    """Some requests with their candidates: users (R rows), the distinct items (I rows), and for each of the N
    candidates its request, its place among the items and the teacher's log-score."""

    users: Batch
    items: Batch
    request: Tensor
    item: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class Distilled:
    """The teacher's scores of all lists; called with request numbers it gives these requests as a batch."""

    merged: Merged
    teacher: np.ndarray
    encoder: Encoder
    user_rows: Rows
    item_rows: Rows

    def __call__(self, chosen: Tensor) -> Lists:
        mask = np.zeros(len(self.merged), dtype=bool)
        mask[chosen.numpy()] = True
        lists = self.merged.only(mask)
        items, item = np.unique(lists.item, return_inverse=True)
        return Lists(
            users=self.encoder(self.user_rows, torch.from_numpy(np.flatnonzero(mask))),
            items=self.encoder(self.item_rows, torch.from_numpy(items).long()),
            request=torch.from_numpy(lists.request),
            item=torch.from_numpy(item),
            teacher=torch.from_numpy(self.teacher[mask[self.merged.request]]),
        )


def train(
    features: Path,
    recall: Path,
    teacher: Path,
    out: Path,
    *,
    settings: Settings,
    seed: int,
    log: Log,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Distil the fine ranker in the folder `teacher` and write the student to `out`.

    Returns C3 on the requests of the fold `tune`: the share of the fine ranker's top 50, and of what users engaged
    with among the candidates, that the coarse top `keep` holds.
    """
    store = FeatureStore.open(features)
    encoder = Encoder(store)
    ranker = fine.load(teacher)
    merged = Merged.open(recall)
    distil, held_out = merged.only(merged.fold == "distil"), merged.only(merged.fold == "tune")
    taught = fine.score_candidates(ranker.model, encoder, store, distil)
    judged = fine.score_candidates(ranker.model, encoder, store, held_out)
    opinion = ranker.fuse_tasks(judged, held_out)

    torch.manual_seed(seed)
    model = Coarse(store.schema, width=settings.width, content=_content_width(store))
    targets = np.log(ranker.fuse_tasks(taught, distil)).astype(np.float32)
    lists = Distilled(distil, targets, encoder, _user_rows(store, distil), _item_rows(store, distil.time[0]))
    per_batch = max(1, settings.batch_size * len(distil) // max(1, len(distil.item)))

    def batches(epoch: int) -> Iterator[Lists]:
        order = torch.randperm(len(distil), generator=torch.Generator().manual_seed(seed * 1_000 + epoch))
        return (lists(chosen) for chosen in order.split(per_batch))

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Coarse)
        return consistency(logits(model, encoder, store, held_out), opinion, held_out, settings.keep)

    fitted = fit(
        model,
        batches,
        distillation,
        validate,
        steps=-(-len(distil) // per_batch),
        rows=len(distil.item),
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        monitor="teacher_top_kept",
        patience=settings.epochs,
        log=log,
        checkpoints=checkpoints,
    )
    learnt, order = logits(model, encoder, store, held_out), ranker.fuse(judged, held_out)
    measured = {
        prior: consistency(with_recall(learnt, held_out, prior), order, held_out, settings.keep) for prior in PRIORS
    }
    prior = max(PRIORS, key=lambda one: measured[one]["positives_kept"])
    save(CoarseRanker(model, prior), store.schema, out, settings)
    return {
        **measured[prior],
        "best_epoch": fitted.epoch,
        "recall_prior": prior,
        "distilled_candidates": len(distil.item),
    }


def distillation(model: nn.Module, lists: Lists) -> Tensor:
    """Soft targets plus the list-wise loss."""
    assert isinstance(model, Coarse)
    student = (model.user(lists.users)[lists.request] * model.item(lists.items)[lists.item]).sum(-1).float()
    soft = F.binary_cross_entropy_with_logits(student, lists.teacher.exp())
    return soft + listwise_distillation(student, lists.teacher, lists.request, temperature=TEMPERATURE)


@torch.inference_mode()
def item_vectors(model: Coarse, encoder: Encoder, store: FeatureStore, time: int) -> Tensor:
    """Vectors (items, D) of the whole catalogue as of a time in µs, in half precision."""
    return model.item(encoder(_item_rows(store, time))).half()


@torch.inference_mode()
def logits(model: Coarse, encoder: Encoder, store: FeatureStore, merged: Merged) -> np.ndarray:
    """The towers' products (N,) for merged candidates; the requests of one time share the item vectors."""
    users = model.user(encoder(_user_rows(store, merged)))
    result = np.zeros(len(merged.item), np.float32)
    for time in np.unique(merged.time):
        items = item_vectors(model, encoder, store, int(time)).float()
        candidates = np.flatnonzero((merged.time == time)[merged.request])
        for part in np.array_split(candidates, len(candidates) // CHUNK + 1):
            request, item = torch.from_numpy(merged.request[part]), torch.from_numpy(merged.item[part]).long()
            result[part] = (users[request] * items[item]).sum(-1).numpy()
    return result


def _user_rows(store: FeatureStore, merged: Merged) -> Rows:
    """One row a request, without an item."""
    return store.rows(merged.user, np.zeros_like(merged.user), merged.domain, merged.time)


def _item_rows(store: FeatureStore, time: int) -> Rows:
    """One row an item of the whole catalogue as of a time, without a user."""
    items = np.arange(len(store.items["code_item_id"]), dtype=np.int32)
    nobody, nowhere = np.zeros_like(items), np.zeros(len(items), np.int16)
    return store.rows(nobody, items, nowhere, np.full(len(items), time, np.int64))


def consistency(scores: np.ndarray, teacher: np.ndarray, merged: Merged, keep: int) -> dict[str, float]:
    """C3: what share of the teacher's top 50, and of the recalled positives, is in the student's top `keep`."""
    kept = rank_within(scores, merged.request) <= keep
    top = rank_within(teacher, merged.request) <= TOP
    return {
        "teacher_top_kept": float(kept[top].mean()),
        "positives_kept": float(kept[merged.positive].mean()) if merged.positive.any() else 0.0,
    }


def with_recall(logits: np.ndarray, merged: Merged, prior: float) -> np.ndarray:
    """Coarse scores (N,): the less an item's place in the merge counts, the smaller `prior`."""
    return np.asarray(logits - prior * np.log(merged.position))


def save(ranker: CoarseRanker, schema: Schema, out: Path, settings: Settings) -> None:
    from safetensors.torch import save_file

    save_file(ranker.model.state_dict(), out / "model.safetensors")
    (out / "schema.json").write_text(schema.to_json())
    told = {**asdict(settings), "content": ranker.model.item_tower.content, "prior": ranker.prior}
    (out / "settings.json").write_text(json.dumps(told, indent=1) + "\n")


def load(folder: Path) -> CoarseRanker:
    """The ranker a folder holds, in evaluation mode."""
    from safetensors.torch import load_file

    settings = json.loads((folder / "settings.json").read_text())
    schema = Schema.from_json((folder / "schema.json").read_text())
    model = Coarse(schema, width=settings["width"], content=settings["content"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return CoarseRanker(model.eval(), settings["prior"])


def rank_within(scores: np.ndarray, request: np.ndarray) -> np.ndarray:
    """1 for the highest score of each request; equal scores keep their order."""
    order = np.lexsort((-scores, request))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores)) - np.searchsorted(request, request) + 1
    return rank


def _content_width(store: FeatureStore) -> int:
    return store.items["content"].shape[1] if "content" in store.items else 0
