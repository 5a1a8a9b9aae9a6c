"""Candidates → fine ranker → coarse ranker distilled from it → ranked lists, and what of them is left for next time."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.recall import weights
from flows.stages import keep_or_make
from pipeline.config import Config
from pipeline.ranking import chain, coarse, fine
from pipeline.recall import cache
from pipeline.tracking import Run

train_fine = Task(fine.train, name="train fine")
train_coarse = Task(coarse.train, name="train coarse")
rank_lists = Task(chain.rank, name="rank lists")
order_lists = Task(chain.order, name="order lists")
remember_lists = Task(cache.remember, name="remember lists")


@flow(name="train rankers")
def train_rankers(
    config: Config, features: Path, validation: Path, run: Run, champion: Path | None = None
) -> tuple[Path, Path]:
    """Train both rankers on the validation slice's requests, the fine one from a `champion` on if there is one. Returns
    the folders of the coarse and the fine one."""
    fine_ranker = keep_or_make(
        train_fine,
        "fine",
        features,
        validation,
        root=config.root,
        run=run,
        reads=weights(champion),
        beside={"champion": champion, "machines": config.machines},
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
    return coarse_ranker, fine_ranker


@flow(name="rank")
def rank(config: Config, features: Path, recalled: Path, coarse: Path, fine: Path, run: Run) -> Path:
    """Rank the candidates of the folder `recalled`, and score the test slice's impressions. Returns the folder."""
    return keep_or_make(
        rank_lists,
        "ranked",
        features,
        recalled,
        coarse,
        fine,
        root=config.root,
        run=run,
        keep=config.coarse.keep,
        final=config.fine.keep,
    )


@flow(name="remember")
def remember(config: Config, features: Path, recalled: Path, coarse: Path, fine: Path, run: Run) -> Path:
    """Rank these candidates and keep, for the route `cache`, what was not shown. Returns its folder."""
    ranked = keep_or_make(
        order_lists,
        "ranked_validation",
        features,
        recalled,
        coarse,
        fine,
        root=config.root,
        run=run,
        keep=config.coarse.keep,
        final=config.fine.keep,
    )
    return keep_or_make(remember_lists, "cache", features, recalled, ranked, root=config.root, run=run)
