"""Features → requests with their merged candidates, as of the start of the validation and of the test slice."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.stages import keep_or_make
from pipeline.config import Config
from pipeline.recall import candidates, two_tower
from pipeline.tracking import Run

train_two_tower = Task(two_tower.train, name="train two-tower")
recall_candidates = Task(candidates.recall, name="recall candidates")


@flow(name="recall")
def recall(config: Config, features: Path, run: Run) -> tuple[Path, Path, Path]:
    """Train the two-tower, then recall twice. Returns its folder and those of the validation and test candidates."""
    tower = keep_or_make(
        train_two_tower,
        "two_tower",
        features,
        root=config.root,
        run=run,
        trains=True,
        settings=config.recall.two_tower,
        positive=config.contract.positive,
        seed=config.seed,
    )
    validation, test = (
        keep_or_make(
            recall_candidates,
            f"recall_{moment}",
            features,
            tower,
            root=config.root,
            run=run,
            moment=moment,
            settings=config.recall,
            positive=config.contract.positive,
            tasks=config.contract.tasks,
            requests=requests,
        )
        for moment, requests in (
            ("validation", 2 * config.fine.candidate_requests),
            ("test", config.evaluation.requests),
        )
    )
    return tower, validation, test
