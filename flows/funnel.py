"""The whole funnel: one run, from raw logs to ranked lists, a report and registered models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Task, flow

from flows.features import features
from flows.rank import rank, remember, train_rankers
from flows.recall import recall, train_routes
from flows.stages import keep_or_make, numbers
from pipeline import config as configuration
from pipeline import lake, tracking
from pipeline.config import Config
from pipeline.evaluation import funnel as evaluation
from pipeline.evaluation import report
from pipeline.recall import candidates
from pipeline.tracking import Run

LATEST = "latest.json"

evaluate_funnel = Task(evaluation.evaluate, name="evaluate funnel")
write_report = Task(report.write, name="write report")
register_model = Task(tracking.register, name="register model")


@flow(name="funnel")
def funnel(config: str = "flows/configs/small.toml", overrides: list[str] | None = None) -> dict[str, Any]:
    """Run the configuration in a TOML file, with overrides such as `fine.model="star"`.

    Finished stages whose input, settings and code are unchanged are kept. Returns where everything lies, which is
    also written to `latest.json` of the run's folder.
    """
    settings = configuration.load(Path(config), overrides or [])
    candidates.check(settings.recall)
    resolved = settings.to_dict()
    folder = Path(resolved.pop("folder"))
    cached = "cache" in settings.recall.routes
    with lake.explain_full_disk(folder), tracking.start(folder, settings.name) as run:
        run.configuration(resolved)
        run.parameters(resolved)

        events, made = features(settings, run)
        routes = train_routes(settings, made, run)
        validation = recall(settings, made, routes, run)
        coarse, fine = train_rankers(settings, made, validation, run)
        last = {"cache": remember(settings, made, validation, coarse, fine, run)} if cached else {}
        test = recall(settings, made, {**routes, **last}, run, validation=validation)
        ranked = rank(settings, made, test, coarse, fine, run)
        judged = judge(settings, events, made, test, ranked, run)
        folders = {"events": events, "features": made, "recall": test, "ranked": ranked, "evaluation": judged}
        page = keep_or_make(write_report, "report", folders, root=settings.root, run=run, config=resolved)

        data = lake.read_manifest(events)["fingerprint"]
        run.data(events, data)
        run.log(numbers(judged))
        run.artefacts([page / "report.html", *sorted(judged.glob("*.png"))])
        register(settings, {**routes, "coarse": coarse, "fine": fine}, judged, run, data=data)

    models = {**routes, "recall_validation": validation, "coarse": coarse, "fine": fine}
    summary = {"run": run.id, "report": page / "report.html", "folders": {**folders, **models}}
    lake.write_json(settings.root / LATEST, summary)
    return summary


def judge(settings: Config, events: Path, features: Path, recalled: Path, ranked: Path, run: Run) -> Path:
    """What the ranked lists are worth. Returns the folder."""
    return keep_or_make(
        evaluate_funnel,
        "evaluation",
        events,
        features,
        recalled,
        ranked,
        root=settings.root,
        run=run,
        settings=settings.evaluation,
        contract=settings.contract,
        keep=settings.coarse.keep,
    )


def register(settings: Config, models: dict[str, Path], judged: Path, run: Run, *, data: str) -> None:
    """Register the models as champions, under the value of the lists that they made."""
    value = numbers(judged)[f"final_ndcg_{max(settings.evaluation.cutoffs)}"]
    for name, model in models.items():
        made_from = lake.read_manifest(model)["fingerprint"]
        register_model(run, registered(name), model, fingerprint=made_from, data=data, value=value)


def registered(name: str) -> str:
    """The name under which a model is registered."""
    return f"recfunnel-{name.replace('_', '-')}"
