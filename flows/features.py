"""Logs → events → features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Task, flow

from flows.stages import READING, keep_or_make, numbers
from pipeline import config as configuration
from pipeline import lake, tracking
from pipeline.config import Config
from pipeline.features import build
from pipeline.sources import contract
from pipeline.tracking import Run

write_events = Task(contract.write_events, name="write events", **READING)
build_features = Task(build.build, name="build features")


@flow(name="features")
def features(config: Config, run: Run) -> tuple[Path, Path]:
    """Check the source against the contract, then make everything the models see. Returns both folders."""
    events = keep_or_make(
        write_events,
        "events",
        root=config.root,
        run=run,
        reads=contract.source_files(config.source),
        tell=("events", "users", "items", "rejected_rows", "missing_days"),
        source=config.source,
        contract=config.contract,
    )
    made = keep_or_make(
        build_features,
        "features",
        events,
        root=config.root,
        run=run,
        features=config.features,
        contract=config.contract,
        split=config.split,
    )
    return events, made


@flow(name="features only")
def features_only(config: str, overrides: list[str]) -> dict[str, Any]:
    """The features flow as a run of its own. Returns both folders and the metrics of both stages."""
    settings = configuration.load(Path(config), overrides)
    resolved = settings.to_dict()
    folder = Path(resolved.pop("folder"))
    with lake.explain_full_disk(folder), tracking.start(folder, f"{settings.name} features") as run:
        run.configuration(resolved)
        run.parameters(resolved)
        events, made = features(settings, run)
        run.data(events, lake.read_manifest(events)["fingerprint"])
    return {"events": events, "features": made, "logged": numbers(events), "made": numbers(made)}
