"""The space that tuning searches: a point of it as settings of `[fine]`, and where in it the settings themselves lie.

A setting is named as under `[fine]`: "learning_rate", "loss.ranking_weight", "options.dropout". It is drawn as a whole
number where its present value, or the ranker's default of an option, is one.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial
from pydantic import ValidationError

from models import RANKERS
from pipeline.config import Choice, Fine, Search, Space
from pipeline.lake import InputError

Point = dict[str, Any]


def check(start: Fine, search: Search, key: str) -> None:
    """Raise `InputError`, naming the setting, for one that the ranker does not have and for an end of a range or a
    choice that it cannot take; `key` is where in the TOML the space lies."""
    known = present(start)
    for name, space in search.items():
        if name not in known:
            options = ", ".join(one for one in known if one.startswith("options."))
            raise InputError(f"{key}: {start.model} has no {name!r}; it has {options or 'no options'}")
        for value in space.values if isinstance(space, Choice) else (space.low, space.high):
            try:
                settings_at(start, {name: _like(known[name], value) if isinstance(space, Space) else value})
            except ValidationError as error:
                raise InputError(f"{key}: {name} = {value!r}: {error.errors()[0]['msg']}") from None


def present(settings: Fine) -> Point:
    """Every setting that can be searched by its name, with its value; of options that are not set, the default."""
    options = {
        name: one.default
        for name, one in inspect.signature(RANKERS[settings.model]).parameters.items()
        if name != "schema"
    }
    return {
        **{
            name: value
            for name, value in vars(settings).items()
            if name not in ("model", "options", "loss", "encodings")
        },
        **{f"loss.{name}": value for name, value in vars(settings.loss).items()},
        **{f"options.{name}": settings.options.get(name, default) for name, default in options.items()},
    }


def nearest(settings: Fine, search: Search) -> Point:
    """The settings themselves as Optuna's parameters: of a range what is nearest to them, of choices the first if they
    are none of these."""
    known = present(settings)
    point: Point = {}
    for name, space in search.items():
        if isinstance(space, Choice):
            texts = [json.dumps(value) for value in space.values]
            own = json.dumps(known[name])
            point[name] = own if own in texts else texts[0]
        else:
            point[name] = _like(known[name], min(max(known[name], space.low), space.high))
    return point


def draw(trial: BaseTrial, settings: Fine, search: Search) -> Point:
    """What a trial of Optuna draws of the space."""
    known = present(settings)
    for name, space in search.items():
        if isinstance(space, Choice):
            trial.suggest_categorical(name, [json.dumps(value) for value in space.values])
        elif _is_whole(known[name]):
            trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
        else:
            trial.suggest_float(name, space.low, space.high, log=space.log)
    return decoded(trial)


def decoded(trial: BaseTrial) -> Point:
    """What a trial has drawn; choices are parameters as JSON, since Optuna takes no lists."""
    chosen = {name for name, kind in trial.distributions.items() if isinstance(kind, CategoricalDistribution)}
    return {name: json.loads(value) if name in chosen else value for name, value in trial.params.items()}


def settings_at(start: Fine, point: Mapping[str, Any]) -> Fine:
    """The settings `start` with those of the point in their place."""
    of: dict[str, Point] = {"": {}, "loss": {}, "options": {}}
    for name, value in point.items():
        owner, _, own = name.rpartition(".")
        of[owner][own] = value
    return replace(start, **of[""], loss=replace(start.loss, **of["loss"]), options={**start.options, **of["options"]})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _like(own: object, value: float) -> float:
    return int(value) if _is_whole(own) else value
