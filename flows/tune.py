"""The best settings of the configured ranker: trials one after another, each a task and a nested run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from prefect import Task, flow
from rich.console import Console
from rich.table import Table

from flows.features import features
from pipeline import config as configuration
from pipeline import lake, tracking
from pipeline.ranking import search, tuning
from pipeline.ranking.tuning import Tried

STUDIES = "tune.log"
SHOWN = 10

try_next = Task(tuning.try_next, name="trial")


@flow(name="tune")
def tune(config: str, overrides: list[str]) -> dict[str, Any]:
    """Search the configuration's `[tune]` for the best settings of its ranker, and print them as TOML.

    Trials are kept in `tune.log` of the run's folder, under what they depend on: asked again, the flow goes on where it
    was, and with more of `tune.trials` it goes further.
    """
    settings = configuration.load(Path(config), overrides)
    start, space = settings.fine, settings.tune.search
    search.check(start, space, "tune.search")
    resolved = settings.to_dict()
    folder = Path(resolved.pop("folder"))
    metric = f"auc_{settings.contract.positive}"
    with lake.explain_full_disk(folder), tracking.start(folder, f"{settings.name} tune") as run:
        run.configuration(resolved)
        run.parameters({name: resolved[name] for name in ("seed", "fine", "tune")})
        events, made = features(settings, run)
        run.data(events, lake.read_manifest(events)["fingerprint"])
        name = lake.fingerprint(tuning.judge, inputs=(made,), start=start, space=space, seed=settings.seed)
        study = tuning.study(settings.root / STUDIES, name, settings.tune)
        judge = partial(tuning.judge, made, seed=settings.seed)
        for number in range(len(tuning.history(study)), settings.tune.trials):
            with run.child(f"trial {number}") as child:
                tried = try_next(study, start, space, judge, metric=metric, seed=settings.seed, log=child.log)
                child.parameters({"fine": vars(search.settings_at(start, tried.point))})
                child.tag(pruned=str(tried.value is None))
                _tell(tried)
        finished = tuning.history(study)
        best = tuning.best(finished)
        chosen = search.settings_at(start, best.point)
        pruned = sum(one.value is None for one in finished)
        run.log({f"best_{metric}": best.value or 0.0, "trials": len(finished), "pruned": pruned})
        run.parameters({"best": best.point})
    _print(finished, metric)
    print(f"\n{tuning.as_toml(chosen)}")
    return {"best": best.point, "value": best.value, "trials": len(finished)}


def _tell(tried: Tried) -> None:
    value = f"given up after epoch {tried.epochs}" if tried.value is None else f"{tried.value:.5f}"
    drawn = " · ".join(f"{name} {_short(one)}" for name, one in tried.point.items())
    Console(highlight=False).print(f"[bold]trial {tried.number:<12}[/]{value:>16}   [dim]{drawn}[/]", soft_wrap=True)


def _print(finished: list[Tried], metric: str) -> None:
    """The best trials, best first."""
    complete = sorted((one for one in finished if one.value is not None), key=lambda one: -(one.value or 0.0))
    table = Table("trial", f"validation {metric}", "epochs", *finished[0].point, width=100)
    for one in complete[:SHOWN]:
        table.add_row(str(one.number), f"{one.value:.5f}", str(one.epochs), *map(_short, one.point.values()))
    Console(width=100, highlight=False).print(table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
