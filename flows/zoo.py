"""The rankers side by side: each tuned with an equal budget, then trained with equal seeds on one run's features."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from prefect import Task, flow
from rich.console import Console
from rich.table import Table

from flows.features import features
from flows.stages import keep_or_make, numbers
from pipeline import config as configuration
from pipeline import tracking
from pipeline.config import Config, Fine
from pipeline.evaluation import impressions, leaderboard, plots, truth
from pipeline.features.store import FeatureStore
from pipeline.ranking import chain, search

judge_ranker = Task(leaderboard.contest, name="judge ranker")

optuna.logging.set_verbosity(optuna.logging.WARNING)

SHOWN_DOMAINS = 7

Judge = Callable[..., dict[str, float]]


@flow(name="zoo")
def zoo(config: str, overrides: list[str], models: list[str]) -> dict[str, Any]:
    """Tune and train `models` as the configuration's `[zoo]` says and print their leaderboard.

    Every model gets the same number of trials on the validation slice, all with seed 0, the first of them with the
    configuration's own values; then its best values are trained with the seeds 1 … `seeds` and judged on the test
    slice. What is finished is kept, so an interrupted zoo goes on where it was; a model that fails is named at the
    end and does not stop the others. Writes results.csv, leaderboard.csv and leaderboard.png.
    """
    settings = configuration.load(Path(config), overrides)
    positive = settings.contract.positive
    metric = f"auc_{positive}"
    results: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    with tracking.start(Path(settings.folder), f"{settings.name} zoo") as run:
        events, made = features(settings, run)
        for model in models:
            try:
                with run.child(model) as child:
                    judge = partial(_judge, made, settings.root, child, metric)
                    chosen = tune(settings, model, judge)
                    child.parameters({"fine": vars(chosen)})
                    for seed in range(1, settings.zoo.seeds + 1):
                        judged = judge(f"zoo_{model}_{seed}", settings=chosen, seed=seed)
                        results.append({"model": model, "seed": seed, **judged})
            except Exception as error:
                failed[model] = error
                traceback.print_exception(error)
        if not results:
            raise RuntimeError(f"no ranker could be trained: {', '.join(failed)}")
        store = FeatureStore.open(made)
        shown = pl.DataFrame(chain.impressions(store, store.log("test"), "test", store.schema.labels))
        popularity = impressions.popularity_auc(shown, positive)
        bounds = {} if math.isnan(popularity) else {"popularity": popularity}
        if truth.is_known(events):
            begin = json.loads((made / "slices.json").read_text())["test"]
            bounds["oracle"] = truth.oracle_auc(events, begin, positive)
        frame = pl.DataFrame(results, infer_schema_length=None)
        summary = leaderboard.table(frame, metric)
        files = [settings.root / name for name in ("results.csv", "leaderboard.csv", "leaderboard.png")]
        frame.write_csv(files[0])
        summary.write_csv(files[1])
        plots.save(leaderboard.picture(summary, bounds, metric), files[2])
        run.artefacts(files)
    _print(summary, frame, metric, bounds)
    for model, why in failed.items():
        print(f"{model} failed: {why}")
    return {"results": results, "failed": sorted(failed), **bounds}


def tune(settings: Config, model: str, judge: Judge) -> Fine:
    """The best of `zoo.trials` settings of a model by its AUC on the validation slice (Optuna's TPE sampler).

    The first are the configuration's own, or what of the space is nearest to them; without a trial they stand. An
    option that the ranker does not have is left out of its search.
    """
    start = replace(settings.fine, model=model, options=settings.fine.options if model == settings.fine.model else {})
    space = {name: one for name, one in settings.zoo.search.items() if name in search.present(start)}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=settings.seed))
    study.enqueue_trial(search.nearest(start, space))
    tried = []
    for number in range(settings.zoo.trials):
        trial = study.ask()
        tried.append(search.settings_at(start, search.draw(trial, start, space)))
        judged = judge(f"zoo_{model}_trial{number}", settings=tried[-1], seed=0)
        study.tell(trial, judged[f"validation_auc_{settings.contract.positive}"])
    return tried[study.best_trial.number] if tried else start


def _judge(
    made: Path, root: Path, run: tracking.Run, metric: str, name: str, *, settings: Fine, seed: int
) -> dict[str, float]:
    folder = keep_or_make(
        judge_ranker, name, made, root=root, run=run, trains=True, tell=(metric,), settings=settings, seed=seed
    )
    return numbers(folder)


def _print(summary: pl.DataFrame, results: pl.DataFrame, metric: str, bounds: dict[str, float]) -> None:
    """The leaderboard, and the metric of every domain, each at most 100 columns wide."""
    console = Console(width=100)
    shown = Table(
        "model", metric, "ahead of flat_dnn", "wins", "parameters", "rows/s", "ms/300",
        title=f"test slice, mean over {results['seed'].n_unique()} seeds: ± standard deviation; ahead: ± 95 % interval",
    )  # fmt: skip
    for row in summary.iter_rows(named=True):
        compared = row["ahead"] is not None and row["model"] != leaderboard.BASELINE
        interval = "" if row["high"] is None else f" ± {row['high'] - row['ahead']:.4f}"
        shown.add_row(
            row["model"],
            f"{row['mean']:.4f} ± {row['std'] or 0:.4f}",
            f"{row['ahead']:+.4f}{interval}" if compared else "—",
            f"{row['wins']}/{row['seeds']}" if compared else "—",
            f"{row['parameters']:,.0f}",
            f"{row['rows_per_second']:,.0f}",
            f"{row['ms_per_300']:.1f}",
        )
    for name, value in bounds.items():
        shown.add_row(name, f"{value:.4f}")
    console.print(shown)

    domains = [name.removeprefix(f"{metric}_") for name in results.columns if name.startswith(f"{metric}_")]
    most = sorted(domains, key=lambda domain: -results[f"{metric}_{domain}"].count())[:SHOWN_DOMAINS]
    means = results.group_by("model").agg(pl.col(f"{metric}_{domain}").mean() for domain in most)
    by_domain = Table("model", *most, title=f"{metric} by domain")
    for row in summary.select("model").join(means, on="model", maintain_order="left").iter_rows(named=True):
        by_domain.add_row(row["model"], *(f"{row[f'{metric}_{domain}']:.4f}" for domain in most))
    console.print(by_domain)
