"""Features → requests with their merged candidates, as of the start of the validation or of the test slice."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.stages import keep_or_make
from pipeline.config import Config
from pipeline.ranking.carry import WEIGHTS
from pipeline.recall import candidates
from pipeline.tracking import Run

recall_candidates = Task(candidates.recall, name="recall candidates")


@flow(name="train routes")
def train_routes(config: Config, features: Path, run: Run, champions: dict[str, Path] | None = None) -> dict[str, Path]:
    """Train the routes that have a model, those of which there is a champion from it on. Returns their folders by
    route."""
    settings, positive, earlier = config.recall, config.contract.positive, champions or {}
    return {
        route: keep_or_make(
            Task(candidates.ROUTES[route].train, name=f"train {route}"),
            route,
            features,
            root=config.root,
            run=run,
            reads=[*candidates.reads(settings, route), *weights(earlier.get(route))],
            beside={"champion": earlier[route]} if route in earlier else None,
            trains=True,
            positive=positive,
            seed=config.seed,
            **candidates.options(settings, route, "train"),
        )
        for route in candidates.trained(settings)
    }


def weights(model: Path | None) -> list[Path]:
    """The file that says which model it is."""
    return [model / WEIGHTS] if model else []


@flow(name="recall")
def recall(
    config: Config, features: Path, models: dict[str, Path], run: Run, *, validation: Path | None = None
) -> Path:
    """Candidates of the validation slice or, after the folder `validation` of these, of the test slice."""
    quotas = [validation] if validation and config.recall.quota == "auto" else []
    moment, requests = (
        ("test", config.evaluation.requests) if validation else ("validation", 2 * config.fine.candidate_requests)
    )
    return keep_or_make(
        recall_candidates,
        f"recall_{moment}",
        features,
        models,
        *quotas,
        root=config.root,
        run=run,
        moment=moment,
        settings=config.recall,
        positive=config.contract.positive,
        tasks=config.contract.tasks,
        requests=requests,
    )
