"""Features → requests with their merged candidates, as of the start of the validation and of the test slice."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.stages import keep_or_make
from pipeline.config import Config
from pipeline.recall import candidates
from pipeline.tracking import Run

recall_candidates = Task(candidates.recall, name="recall candidates")


@flow(name="recall")
def recall(config: Config, features: Path, run: Run) -> tuple[dict[str, Path], Path, Path]:
    """Train the routes that have a model, then recall twice. Returns the models' folders by route, and those of the
    validation and test candidates."""
    settings, positive = config.recall, config.contract.positive
    models = {
        route: keep_or_make(
            Task(candidates.ROUTES[route].train, name=f"train {route}"),
            route,
            features,
            root=config.root,
            run=run,
            reads=candidates.reads(settings, route),
            trains=True,
            positive=positive,
            seed=config.seed,
            **candidates.options(settings, route, "train"),
        )
        for route in candidates.trained(settings)
    }

    def recalled(moment: str, requests: int, *inputs: Path) -> Path:
        return keep_or_make(
            recall_candidates,
            f"recall_{moment}",
            features,
            models,
            *inputs,
            root=config.root,
            run=run,
            moment=moment,
            settings=settings,
            positive=positive,
            tasks=config.contract.tasks,
            requests=requests,
        )

    validation = recalled("validation", 2 * config.fine.candidate_requests)
    quotas = [validation] if settings.quota == "auto" else []
    test = recalled("test", config.evaluation.requests, *quotas)
    return models, validation, test
