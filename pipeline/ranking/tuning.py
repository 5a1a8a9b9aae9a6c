"""The best settings of a ranker: a study of Optuna's that is kept in a file, and prunes by validation after each epoch.

Every trial trains with the same seed and is judged on the validation slice; the test slice is not looked at. A trial is
drawn by a sampler of its own, seeded by how many trials are finished, so that a study that is killed and taken up again
makes the trials that it would have made. The value of the best one is the greatest of many, and so a little flattered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Fine, Search, Tune
from pipeline.ranking import fine, search, training
from pipeline.ranking.search import Point

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Report = Callable[[dict[str, float], int], bool]
"""Told the metrics of an epoch (from 1); says whether to train on."""

Judge = Callable[[Fine, Report], dict[str, float] | None]
"""Trains with settings and returns the best epoch's metrics, or None where a report said to stop."""


@dataclass(frozen=True)
class Tried:
    """A finished trial, the `number`th from 0: what it drew, its value (None if it was pruned), and for how many epochs
    it was trained."""

    number: int
    point: Point
    value: float | None
    epochs: int


class _Stopped(Exception):  # noqa: N818
    """A report said to stop."""


def judge(features: Path, settings: Fine, report: Report, *, seed: int) -> dict[str, float] | None:
    """The best validation metrics of a ranker trained on the training slice's impressions; None where a report said to
    stop or the loss was no longer finite."""
    store, encoder, held_out = fine.opened(features, settings.loss.watch_time)
    prepared = training.prepared(store, encoder, settings, seed)

    def log(metrics: dict[str, float], epoch: int) -> None:
        if not report(metrics, epoch):
            raise _Stopped

    try:
        _, fitted = fine.learn(
            encoder,
            fine.outputs(store.schema, settings),
            prepared,
            held_out,
            settings=settings,
            seed=seed,
            log=log,
        )
    except _Stopped:
        return None
    except FloatingPointError as error:
        logging.getLogger(__name__).warning("%s; this trial is given up", error)
        return None
    return fitted.metrics


def study(file: Path, name: str, settings: Tune) -> optuna.Study:
    """The study of this name in a file of Optuna's journal. What was being tried when it was killed counts as failed;
    only one process at a time may go on with a study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(file))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.unpruned),
        load_if_exists=True,
    )
    for trial in found.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
        found.tell(trial.number, state=TrialState.FAIL)
    return found


def try_next(
    of: optuna.Study, start: Fine, space: Search, judge: Judge, *, metric: str, seed: int, log: Callable[..., None]
) -> Tried:
    """Make the next trial, whose value is the best epoch's `metric`; the first is `start` itself, or what of the space
    is nearest to it. `log(metrics, epoch)` is told after each epoch."""
    number = len(of.get_trials(deepcopy=False, states=FINISHED))
    of.sampler = optuna.samplers.TPESampler(seed=(seed * 100_003 + number) % 2**32)
    if number == 0:
        of.enqueue_trial(search.nearest(start, space))
    trial = of.ask()
    point = search.draw(trial, start, space)

    def report(metrics: dict[str, float], epoch: int) -> bool:
        log(metrics, epoch)
        trial.report(metrics[metric], epoch)
        return not trial.should_prune()

    metrics = judge(search.settings_at(start, point), report)
    if metrics is None:
        told = of.tell(trial, state=TrialState.PRUNED)
        return _tried(told, number)
    return _tried(of.tell(trial, metrics[metric]), number)


def history(of: optuna.Study) -> list[Tried]:
    """The finished trials, in order."""
    return [_tried(one, number) for number, one in enumerate(of.get_trials(states=FINISHED))]


def best(tried: list[Tried]) -> Tried:
    """The trial of the highest value, the earliest of equal ones. Raises `RuntimeError` if all were given up."""
    complete = [one for one in tried if one.value is not None]
    if not complete:
        raise RuntimeError("no trial was trained to its end; lower the learning rates of tune.search")
    return max(complete, key=lambda one: (one.value, -one.number))


def as_toml(settings: Fine) -> str:
    """The section `[fine]`, without what is a default."""
    import tomli_w

    return tomli_w.dumps({"fine": _changed(asdict(settings), asdict(Fine()))})


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            if inner := _changed(value, defaults[name]):
                changed[name] = inner
        elif name not in defaults or value != defaults[name]:
            changed[name] = value
    return changed


def _tried(trial: FrozenTrial, number: int) -> Tried:
    value = trial.value if trial.state == TrialState.COMPLETE else None
    return Tried(number, search.decoded(trial), value, len(trial.intermediate_values))
