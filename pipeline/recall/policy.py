"""R16, a policy trained by REINFORCE on what another policy showed (`models.policy`).

Every row of the log is an action a in a state s, with the reward R of what its user engaged with then and, discounted,
in the next impressions. The loss is

    − Σ min(π/β, cap) · λ_K(π) · R · log π(a | s)   −   Σ log β(a | s),      λ_K = K (1 − π)^(K−1)

where π/β makes up for that the log is not π's own, and λ_K for that K items are shown and not one: once an item is as
good as certain to be among them, it need not become likelier. Softmaxes are estimated from a sample of the items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.policy import Policy, correction
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.batches import Batch
from pipeline.ranking.fit import fit as fit_model
from pipeline.recall import index as nearest
from pipeline.recall import index_choice, trained
from pipeline.recall.faiss_engine import Flat
from pipeline.recall.histories import Histories, Reader, held_out, hit_share, sampler_of_all
from pipeline.recall.route import Found, Requests, Route
from pipeline.recall.snapshot import Snapshot, take
from pipeline.recall.two_tower import CUTOFF

SETTINGS = "policy.json"
HORIZON = 20
CHUNK = 8_192

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """B states with their rewards, and S items, the actions taken first."""

    users: Batch
    reward: Tensor
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
    temperature: float = 0.1,
    top: int = 16,
    cap: float = 10.0,
    discount: float = 0.0,
    epochs: int = 4,
    batch_size: int = 512,
    learning_rate: float = 0.003,
    negatives: int = 1024,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Train on all impressions of the train slice, K being `top`, and write the weights of the epoch with the best
    recall@50 on validation.

    Raises `InputError` when no impression there has a reward.
    """
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["validation"], positive)
    rows = snapshot.interactions.filter((pl.col("user") > 0) & (pl.col("item") > 0)).sort("user", "time", "item")
    user, item = (rows[name].to_numpy() for name in ("user", "item"))
    reward = returns(user, rows["engaged"].to_numpy().astype(np.float64), discount).astype(np.float32)
    if not reward.any():
        raise InputError(f"{features}: no row of the train slice has {positive} = 1; choose another task")
    torch.manual_seed(seed)
    reader = Reader.of(store, length)
    hyper: dict[str, Any] = {"width": width, "length": length, "temperature": temperature}
    hyper |= {"content": reader.content.shape[1]}
    model = Policy(store.schema, **hyper)
    histories = Histories.before(snapshot, rows)
    sampler = sampler_of_all(item, snapshot.items["item"].to_numpy(), len(reader.codes))

    def batches(epoch: int) -> Iterator[Sample]:
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        own = torch.tensor(item).long()
        for index in torch.randperm(len(rows), generator=generator).split(batch_size):
            drawn = torch.multinomial(sampler.negative, negatives, replacement=True, generator=generator)
            sampled = torch.cat([own[index], drawn])
            log_q = sampler.log_q(sampled, len(index), negatives)
            users = reader(histories.take(index.numpy()))
            yield Sample(users, torch.from_numpy(reward)[index], sampled, log_q)

    def loss(model: nn.Module, sample: Sample) -> Tensor:
        assert isinstance(model, Policy)
        wants, logs = model.users(sample.users)
        items = reader.codes[sample.item], reader.content[sample.item]
        log_policy = log_chosen(wants, model.item_vectors(*items), sample.item, sample.log_q)
        log_logged = log_chosen(logs, model.logged_item_vectors(*items), sample.item, sample.log_q)
        weight = correction(log_policy, log_logged, k=top, cap=cap) * sample.reward
        return -(weight * log_policy).sum() / (top * len(weight)) - log_logged.mean()

    later, asked, wanted = held_out(store, positive, seed)

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Policy)
        found = Greedy(model, reader, nearest.build(*vectors_of(model, reader, later), Flat())).answer(asked, CUTOFF)
        return {f"recall_{CUTOFF}": hit_share(found, wanted)}

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
    told = {"top": top, "cap": cap, "discount": discount, "epoch": fitted.epoch}
    trained.save(model, out, SETTINGS, {"model": hyper, **told, **fitted.metrics})
    return {"rewarded": int((reward > 0).sum()), "epoch": fitted.epoch, **fitted.metrics}


def fit(snapshot: Snapshot, folder: Path, *, model: Path, index: str = "auto") -> None:
    """Write the index of the available items' vectors, as `index_choice.make` says, and the model beside it."""
    trained.copy(model, folder, SETTINGS)
    policy = load_model(folder, snapshot.store)
    reader = Reader.of(snapshot.store, len(policy.state.recency))
    vectors, ids = vectors_of(policy, reader, snapshot)
    queries = users_of(policy, reader, Histories.of(Requests.sample(snapshot, index_choice.QUERIES)))
    trained.write_index(folder, vectors, ids, index, queries, name=Path(__file__).stem)


@dataclass(frozen=True)
class Greedy:
    """A trained policy and the index of its items' vectors."""

    model: Policy
    reader: Reader
    index: nearest.Nearest

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items that π holds likeliest for each request, scored by the logit."""
        return self.answer(Histories.of(requests), k)

    def answer(self, histories: Histories, k: int) -> Found:
        ids, scores = self.index.search(users_of(self.model, self.reader, histories), k)
        return Found(ids.astype(np.int32), scores)


def load(folder: Path, store: FeatureStore) -> Route:
    model = load_model(folder, store)
    reader = Reader.of(store, len(model.state.recency))
    return Greedy(model, reader, trained.load_index(folder, model.item_net.out_features))


def load_model(folder: Path, store: FeatureStore) -> Policy:
    """The policy in a folder, for scoring."""
    settings = json.loads((folder / SETTINGS).read_text())
    return trained.load(Policy(store.schema, **settings["model"]), folder)


@torch.inference_mode()
def vectors_of(model: Policy, reader: Reader, snapshot: Snapshot) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The vectors (N, D) and numbers (N,) of the available items."""
    ids = snapshot.items["item"].to_numpy().astype(np.int64)
    place = torch.from_numpy(ids)
    return model.item_vectors(reader.codes[place], reader.content[place]).numpy(), ids


@torch.inference_mode()
def users_of(model: Policy, reader: Reader, histories: Histories) -> Floats:
    """The users' vectors (R, D), a few hundred at a time."""
    chunks = range(0, len(histories), CHUNK)
    vectors = [model.users(reader(histories.take(slice(at, at + CHUNK))))[0].numpy() for at in chunks]
    return np.concatenate([np.zeros((0, model.item_net.out_features), np.float32), *vectors])


def log_chosen(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor) -> Tensor:
    """log of each row's own share (B,) in a softmax over all items, estimated from S sampled ones.

    `user` (B, D) and `item` (S, D) give logits; item's first B are the rows' own, which count as they are. The others
    stand for the whole catalogue: each counts 1/q, `log_q` (S,) being the log of how often it is expected among the
    samples; copies of the row's own item, told by `item_id` (S,), do not count.
    """
    with torch.autocast(user.device.type, enabled=False):
        logits = user.float() @ item.float().T
    rows = torch.arange(len(user), device=user.device)
    copies = item_id[: len(user), None] == item_id
    weighted = (logits - log_q).masked_fill(copies, -torch.inf)
    weighted[rows, rows] = logits[rows, rows]
    return -cross_entropy(weighted, rows, reduction="none")


def returns(user: npt.NDArray[np.integer], reward: npt.NDArray[np.float64], discount: float) -> npt.NDArray[np.float64]:
    """Σ_h discount^h · reward of the user's h-th impression from here on, up to `HORIZON` ahead, for N rows by user and
    in order of time."""
    total = reward.copy()
    for ahead in range(1, HORIZON + 1 if discount else 1):
        same = user[ahead:] == user[:-ahead]
        total[:-ahead] += np.where(same, discount**ahead * reward[ahead:], 0.0)
    return total
