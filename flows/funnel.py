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
from pipeline.evaluation import funnel as evaluation
from pipeline.evaluation import report
from pipeline.recall import candidates

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
        ranked = rank(settings, made, test, coarse, fine, run, name="ranked")
        judged = keep_or_make(
            evaluate_funnel,
            "evaluation",
            events,
            made,
            test,
            ranked,
            root=settings.root,
            run=run,
            settings=settings.evaluation,
            contract=settings.contract,
            keep=settings.coarse.keep,
        )
        folders = {"events": events, "features": made, "recall": test, "ranked": ranked, "evaluation": judged}
        page = keep_or_make(write_report, "report", folders, root=settings.root, run=run, config=resolved)

        data = lake.read_manifest(events)["fingerprint"]
        metrics = numbers(judged)
        run.data(events, data)
        run.log(metrics)
        run.artefacts([page / "report.html", *sorted(judged.glob("*.png"))])
        for name, model in {**routes, "coarse": coarse, "fine": fine}.items():
            made_from = lake.read_manifest(model)["fingerprint"]
            register_model(
                run,
                f"recfunnel-{name.replace('_', '-')}",
                model,
                fingerprint=made_from,
                data=data,
                value=metrics[f"final_ndcg_{max(settings.evaluation.cutoffs)}"],
            )

    models = {**routes, "recall_validation": validation, "coarse": coarse, "fine": fine}
    summary = {"run": run.id, "report": page / "report.html", "folders": {**folders, **models}}
    lake.write_json(settings.root / LATEST, summary)
    return summary
