"""The rankers side by side: every model with every seed, on one run's features and candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from prefect import Task, flow
from rich.console import Console
from rich.table import Table

from flows.features import features
from flows.recall import recall
from flows.stages import keep_or_make, numbers
from pipeline import config as configuration
from pipeline import tracking
from pipeline.evaluation import impressions, leaderboard, truth

judge_ranker = Task(leaderboard.contest, name="judge ranker")


@flow(name="zoo")
def zoo(config: str, overrides: list[str], models: list[str], seeds: int) -> dict[str, Any]:
    """Train `models` with the seeds 0 … `seeds`-1 and print their leaderboard, which is also kept as leaderboard.csv.

    A model and seed that are finished are kept, so an interrupted zoo goes on where it was.
    """
    settings = configuration.load(Path(config), overrides)
    results = []
    with tracking.start(Path(settings.folder), f"{settings.name} zoo") as run:
        events, made = features(settings, run)
        _, validation, _ = recall(settings, made, run)
        for seed in range(seeds):
            for model in models:
                folder = keep_or_make(
                    judge_ranker,
                    f"zoo_{model}_{seed}",
                    made,
                    validation,
                    root=settings.root,
                    run=run,
                    trains=True,
                    tell=(f"auc_{settings.contract.positive}",),
                    settings=replace(settings.fine, model=model, options={}),
                    seed=seed,
                )
                results.append({"model": model, "seed": seed, **numbers(folder)})
        positive = settings.contract.positive
        bounds = {"popularity": impressions.popularity_auc(made, positive)}
        if truth.is_known(events):
            begin = json.loads((made / "slices.json").read_text())["test"]
            bounds["oracle"] = truth.oracle_auc(events, begin, positive)
        frame = pl.DataFrame(results, infer_schema_length=None)
        frame.write_csv(settings.root / "leaderboard.csv")
        run.artefacts([settings.root / "leaderboard.csv"])
    _print(frame, f"auc_{positive}", bounds)
    return {"results": results, **bounds}


def _print(results: pl.DataFrame, metric: str, bounds: dict[str, float]) -> None:
    domains = sorted(name.removeprefix(f"{metric}_") for name in results.columns if name.startswith(f"{metric}_"))
    means = results.group_by("model").agg(pl.col(f"{metric}_{domain}").mean() for domain in domains)
    shown = Table("model", metric, "ahead", "wins", *domains, title="test slice, mean over seeds")
    for row in leaderboard.table(results, metric).join(means, on="model", maintain_order="left").iter_rows(named=True):
        mean = f"{row['mean']:.4f} ± {row['std'] or 0:.4f}"
        ahead, wins = ("—", "—") if row["ahead"] is None else (f"{row['ahead']:+.4f}", f"{row['wins']}/{row['seeds']}")
        shown.add_row(row["model"], mean, ahead, wins, *(f"{row[f'{metric}_{domain}']:.3f}" for domain in domains))
    for name, value in bounds.items():
        shown.add_row(name, f"{value:.4f}")
    Console(width=100).print(shown)
