"""The fine ranker: several tasks on the logged impressions, and one on what the log never showed.

Sample selection. The tasks of the log (click, long view, …) are learnt where their labels are known, on impressions.
But the ranker orders merged candidates, most of which no policy ever showed, and a model of impressions alone has
not seen their like. So the ranker has one task more, `relevance`: of the candidates that recall gives for requests
at the start of the validation slice, did the user engage with this one in that slice? Its rows are the funnel's own
candidates, unexposed ones among them, with features as of the request; the other tasks are masked there, and
relevance is masked on impressions. Requests of half of the users (fold `distil`) are trained on; the other half
(fold `tune`) decide when to stop and how the task scores are fused. The test slice is seen by none of this.

Refreshing. With a `champion`, an earlier ranker's folder, training goes on from its weights, on the rows since.

Watch time. With `Loss.watch_time` a duration is one more output; what is served of it is e^logit, the expected seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import RANKERS, processes
from models.layers import parameters, whole
from models.objective import Criterion, objective
from models.rankers.gbdt_lr import GBDTLR
from models.schema import Schema
from pipeline.config import Fine, Loss, Machines
from pipeline.evaluation.metrics import auc, duration_metrics
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import InputError
from pipeline.ranking import training
from pipeline.ranking.batches import Batch, Encoder, in_order
from pipeline.ranking.carry import WEIGHTS, Champion, Known, Start, remember
from pipeline.ranking.delay import DelayCurve
from pipeline.ranking.fit import Fitted, Log, fit
from pipeline.ranking.fuse import fuse, ndcg, tune, with_recall
from pipeline.ranking.launch import HERE, together
from pipeline.ranking.losses import (
    as_known_by_now,
    corrected_for_sampling,
    masked_bce,
    negatives_gradient,
    with_ranking,
    with_watch_time,
)
from pipeline.ranking.merged import Merged
from pipeline.ranking.stream import shuffled
from pipeline.ranking.training import Training
from pipeline.ranking.trees import grow
from pipeline.ranking.weighting import mean_shift

RELEVANCE = "relevance"
SETTINGS = "settings.json"
BOUND = ("gbdt_lr", "wide_deep")  # they split by codes, or hash them
CHUNK = 400_000
GROWN_AT_ONCE = 16_384
HOUR = 3_600.0
LARGEST = 1 - 1e-7


@dataclass(frozen=True)
class Ranker:
    """A trained fine ranker and how its scores are fused: `weights` (P, T + 1) over `schema.domains`, and over
    `schema.labels` and the place in the merge; `delays` of the tasks whose labels it knows to come late."""

    model: nn.Module
    schema: Schema
    weights: np.ndarray
    delays: dict[str, DelayCurve] = field(default_factory=dict)

    def fuse(self, scores: np.ndarray, merged: Merged) -> np.ndarray:
        """The ranking score (N,) of merged candidates with (N, T) probabilities."""
        shares = with_durations(scores, self.schema, HOUR)
        return fuse(with_recall(shares, merged.position), merged.domain[merged.request], self.weights)

    def fuse_tasks(self, scores: np.ndarray, merged: Merged) -> np.ndarray:
        """The same without the place in the merge: what the ranker itself thinks."""
        shares = with_durations(scores, self.schema, HOUR)
        return fuse(shares, merged.domain[merged.request], self.weights[:, :-1])


class Calibrated(nn.Module):
    """A ranker whose logits are shifted, each task's by its own constant, and bounded by a ceiling, (T,) both.

    The ceiling is a duration's: of an odd row a network may expect e^20 seconds, so it may not exceed the longest that
    was watched in training.
    """

    shift: Tensor
    ceiling: Tensor

    def __init__(self, model: nn.Module, shift: Tensor, ceiling: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shift", shift)
        self.register_buffer("ceiling", ceiling)

    def forward(self, batch: Batch) -> Tensor:
        return torch.minimum(self.model(batch) + self.shift, self.ceiling)


@torch.inference_mode()
def answers(model: nn.Module, encoder: Encoder, rows: Rows, asker: np.ndarray) -> Tensor:
    """The model's outputs (N, T) for the candidates of a few requests, `asker` (N,) from 0: rows of one share a
    history, and what a model makes of that alone."""
    return model(encoder(rows, asker=asker))  # type: ignore[no-any-return]


@torch.inference_mode()
def logits(model: nn.Module, encoder: Encoder, rows: Rows, size: int = 16_384) -> Tensor:
    """The model's outputs (N, T) float32. Of several processes each scores a part of every batch, and has all."""
    device = next(model.parameters()).device
    batches = in_order(encoder, rows, size=size, device=device)
    return torch.cat([processes.joined(model(batch)).cpu() for batch in batches])


def probabilities(model: nn.Module, encoder: Encoder, rows: Rows) -> np.ndarray:
    """The probabilities of rows: (N, T) float32."""
    return likely(logits(model, encoder, rows))


def likely(logits: Tensor) -> np.ndarray:
    """σ of the logits, (N, T) both. The one place where logits become probabilities."""
    return logits.sigmoid().numpy()


def with_durations(probabilities: np.ndarray, schema: Schema, unit: float = 1.0) -> np.ndarray:
    """Probabilities (N, T) with, in the place of a duration's, what is expected of it in `unit` seconds: the odds.

    Fusion reads it in hours, a number under one like a probability.
    """
    values = probabilities.copy()
    for place in (place for place, label in enumerate(schema.labels) if label in schema.durations):
        share = np.minimum(values[:, place].astype(np.float64), LARGEST)
        values[:, place] = share / (1 - share) / unit
    return values


@lru_cache(maxsize=1)
def opened(features: Path, watch_time: str) -> tuple[FeatureStore, Encoder, Rows]:
    """The store, its encoder, and the validation slice's impressions, read once for all trainings on them."""
    store = FeatureStore.open(features)
    return store, Encoder(store), training.held_out(store, watch_time)


def outputs(schema: Schema, settings: Fine) -> Schema:
    """What a ranker of impressions has an output for: the log's tasks and, if it is learnt, the time watched."""
    watched = training.watched(schema, settings.loss.watch_time)
    return replace(schema, labels=(*schema.labels, *watched), encodings=settings.encodings)


def criterion_of(loss: Loss, labels: tuple[str, ...]) -> Criterion:
    """How the settings measure the logits of these labels.

    The negatives of relevance are candidates, of which `Loss.negative_rate` says nothing.
    """
    criterion: Criterion = masked_bce
    if loss.ranking != "none":
        criterion = with_ranking(criterion, loss.ranking, loss.ranking_weight)
    if loss.negative_rate < 1:
        criterion = corrected_for_sampling(
            criterion, [1.0 if one == RELEVANCE else loss.negative_rate for one in labels]
        )
    if loss.delay:
        criterion = as_known_by_now(criterion)
    if loss.watch_time:
        criterion = with_watch_time(criterion, labels.index(loss.watch_time))
    return criterion


def train(
    features: Path,
    recall: Path,
    out: Path,
    *,
    settings: Fine,
    seed: int,
    log: Log,
    checkpoints: Path | None = None,
    machines: Machines = HERE,
    champion: Path | None = None,
) -> dict[str, float]:
    """Train the ranker named in the settings; write its weights, schema, options and fusion weights to `out`.

    `recall` holds the validation slice's requests. With a `champion` training goes on from it, on the impressions since
    it was trained. Returns validation metrics: AUC of each task on impressions and NDCG of the fused score on
    candidates, both over users of the fold `tune`. With `settings.processes` as many do all of this together, on these
    machines, unless there is a champion: few rows want one process.

    Raises `InputError` where the champion is of another ranker or schema, and where there is no row since.
    """
    if settings.processes > processes.count() and champion is None:
        given = {"features": features, "recall": recall, "out": out, "settings": settings, "seed": seed}
        given |= {"checkpoints": checkpoints}
        return together(train, given, log=log, processes=settings.processes, machines=machines)
    store = FeatureStore.open(features)
    now = Known.of(store)
    old = _champion(champion, settings) if champion else None
    encoder = Encoder(store)
    merged = Merged.open(recall)
    held_out = merged.only(merged.fold == "tune")
    learnt = outputs(store.schema, settings)
    schema = replace(learnt, labels=(*learnt.labels, RELEVANCE))

    prepared = training.prepared(store, encoder, settings, seed, before=old.known if old else None, recall=recall)
    distil = training.first_requests(recall, "distil", settings.candidate_requests)
    unseen = training.held_out(store, settings.loss.watch_time, without=distil.user)

    model, fitted = learn(
        encoder,
        schema,
        prepared,
        training.unlabelled(unseen),
        settings=settings,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
        start=partial(old.into, now=now) if old else None,
    )
    scores = score_candidates(model, encoder, store, held_out)
    weights = tune(
        with_recall(with_durations(scores, schema, HOUR), held_out.position),
        held_out.domain,
        held_out.request,
        held_out.positive,
        held_out.positives,
        domains=len(schema.domains),
        length=settings.keep,
        trials=settings.trials,
        seed=seed,
    )
    batch = next(shuffled(encoder, prepared.stored, size=settings.batch_size, seed=seed)(0))
    gradients = _gradients(model, batch, settings.loss, schema.labels) if settings.loss.ranking != "none" else {}
    prepared.remove()
    ranker = Ranker(model, schema, weights, prepared.delays)
    save(ranker, out, settings)
    remember(now, fitted.memory, out)
    fused = ranker.fuse(scores, held_out)
    order = ndcg(fused, held_out.request, held_out.positive, held_out.positives, length=settings.keep)
    merge = ndcg(-held_out.position, held_out.request, held_out.positive, held_out.positives, length=settings.keep)
    return {
        **{f"validation_{name}": value for name, value in fitted.metrics.items()},
        "validation_ndcg": float(order.mean()),
        "validation_ndcg_recall_order": float(merge.mean()),
        "best_epoch": fitted.epoch,
        "parameters": parameters(model),
        **prepared.told,
        **(now.moved(old.known) if old else {}),
        **gradients,
    }


def carried(folder: Path, store: FeatureStore) -> Ranker:
    """The ranker a folder holds, for features made since: as it was, where an id it did not know is unknown."""
    ranker = load(folder)
    schema = replace(ranker.schema, fields=store.schema.fields)
    model = _made(json.loads((folder / SETTINGS).read_text()), schema)
    Champion.read(folder).into(model, Known.of(store))
    return replace(ranker, model=model.eval(), schema=schema)


def _champion(folder: Path, settings: Fine) -> Champion:
    """The weights of the ranker itself that a folder holds, if it is the one that the settings name."""
    told = json.loads((folder / SETTINGS).read_text())
    ours = json.loads(json.dumps([settings.model, settings.options]))
    if [told["model"], told["options"]] != ours:
        raise InputError(f"fine.model: the champion is {told['model']} {told['options']}; train anew, recfunnel run")
    if settings.model in BOUND:
        raise InputError(f"fine.model: {settings.model} is bound to one vocabulary; train anew, recfunnel run")
    champion = Champion.read(folder)
    inner = {name.removeprefix("model."): one for name, one in champion.weights.items() if name.startswith("model.")}
    return replace(champion, weights=inner)


def learn(
    encoder: Encoder,
    schema: Schema,
    given: Training,
    held_out: Rows,
    *,
    settings: Fine,
    seed: int,
    log: Log,
    checkpoints: Path | None = None,
    start: Start | None = None,
) -> tuple[Calibrated, Fitted]:
    """A ranker with the outputs of `schema`, a new one or with the weights that `start` gives it, trained on what is
    `given` until the AUC of the first of the log's tasks on the impressions `held_out` no longer rises."""
    torch.manual_seed(seed)
    model = RANKERS[settings.model](schema, **settings.options)
    memory = start(model) if start else {}
    if isinstance(model, GBDTLR):
        grow(model, map(encoder.batch, given.stored.parts(GROWN_AT_ONCE)), seed)
    tasks = encoder.schema.labels
    watched = [place for place, label in enumerate(schema.labels) if label in schema.durations]
    ceiling = torch.full((len(schema.labels),), torch.inf)
    for place in watched:
        ceiling[place] = float(np.log(given.longest))
    criterion = criterion_of(settings.loss, schema.labels)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return objective(model, batch, criterion)

    def validate(model: nn.Module) -> dict[str, float]:
        bounded = Calibrated(model, torch.zeros_like(ceiling), ceiling)
        scores = with_durations(probabilities(bounded, encoder, held_out), schema)
        metrics = {f"auc_{task}": auc(held_out.labels[:, place], scores[:, place]) for place, task in enumerate(tasks)}
        for place in watched:
            seconds, expected = held_out.labels[:, place], scores[:, place]
            metrics |= duration_metrics(schema.labels[place], seconds, expected, held_out.user)
        return metrics

    fitted = fit(
        model,
        shuffled(encoder, given.stored, size=settings.batch_size, seed=seed),
        loss,
        validate,
        steps=-(-len(given.stored) // settings.batch_size),
        rows=len(given.stored),
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        embedding_decay=settings.embedding_decay,
        table_optimiser=settings.table_optimiser,
        table_learning_rate=settings.table_learning_rate,
        monitor=f"auc_{tasks[0]}",
        patience=settings.patience,
        log=log,
        memory=memory,
        checkpoints=checkpoints,
    )
    shift = np.zeros(len(schema.labels), np.float32)
    if settings.loss.repeat_weight:
        binary = held_out.labels.copy()
        binary[:, watched] = np.nan
        shift = mean_shift(logits(model, encoder, held_out).numpy(), binary)
    return Calibrated(model, torch.from_numpy(shift), ceiling).eval(), fitted


def score_candidates(model: nn.Module, encoder: Encoder, store: FeatureStore, merged: Merged) -> np.ndarray:
    """Probabilities (N, T) of the tasks for every candidate of the requests."""
    return np.concatenate([probabilities(model, encoder, chunk.rows(store)) for chunk in merged.chunks(CHUNK)])


def save(ranker: Ranker, out: Path, settings: Fine) -> None:
    from safetensors.torch import save_file

    save_file(whole(ranker.model), out / WEIGHTS)
    (out / "schema.json").write_text(ranker.schema.to_json())
    told: dict[str, Any] = {"model": settings.model, "options": settings.options, "fusion": ranker.weights.tolist()}
    told["delays"] = {task: curve.to_json() for task, curve in ranker.delays.items()}
    (out / SETTINGS).write_text(json.dumps(told, indent=1) + "\n")


def load(folder: Path) -> Ranker:
    """The ranker a folder holds, in evaluation mode."""
    from safetensors.torch import load_file

    settings = json.loads((folder / SETTINGS).read_text())
    schema = Schema.from_json((folder / "schema.json").read_text())
    model = _made(settings, schema)
    model.load_state_dict(load_file(folder / WEIGHTS))
    delays = {task: DelayCurve.from_json(one) for task, one in settings["delays"].items()}
    return Ranker(model.eval(), schema, np.array(settings["fusion"]), delays)


def _made(settings: dict[str, Any], schema: Schema) -> Calibrated:
    """A ranker of the settings that `save` wrote, its weights yet to come."""
    zeros = torch.zeros(len(schema.labels))
    return Calibrated(RANKERS[settings["model"]](schema, **settings["options"]), zeros, zeros.clone())


def _gradients(model: nn.Module, batch: Batch, loss: Loss, labels: tuple[str, ...]) -> dict[str, float]:
    """How much the loss pulls at the negatives of the first label, with and without its ranking part."""
    scores = model(batch)
    losses = {"negatives_gradient": loss, "negatives_gradient_without_ranking": replace(loss, ranking="none")}
    return {
        name: float(negatives_gradient(criterion_of(one, labels), scores, batch)[0]) for name, one in losses.items()
    }
