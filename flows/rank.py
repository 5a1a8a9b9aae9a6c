"""Candidates → fine ranker → coarse ranker distilled from it → ranked lists."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.stages import keep_or_make
from pipeline.config import Config
from pipeline.ranking import chain, coarse, fine
from pipeline.tracking import Run

train_fine = Task(fine.train, name="train fine")
train_coarse = Task(coarse.train, name="train coarse")
rank_lists = Task(chain.rank, name="rank lists")


@flow(name="rank")
def rank(config: Config, features: Path, validation: Path, test: Path, run: Run) -> tuple[Path, Path, Path]:
    """Train both rankers on the validation slice's requests, rank the test slice's. Returns the three folders."""
    fine_ranker = keep_or_make(
        train_fine,
        "fine",
        features,
        validation,
        root=config.root,
        run=run,
        trains=True,
        settings=config.fine,
        seed=config.seed,
    )
    coarse_ranker = keep_or_make(
        train_coarse,
        "coarse",
        features,
        validation,
        fine_ranker,
        root=config.root,
        run=run,
        trains=True,
        settings=config.coarse,
        seed=config.seed,
    )
    ranked = keep_or_make(
        rank_lists,
        "ranked",
        features,
        test,
        coarse_ranker,
        fine_ranker,
        root=config.root,
        run=run,
        keep=config.coarse.keep,
        final=config.fine.keep,
    )
    return coarse_ranker, fine_ranker, ranked
