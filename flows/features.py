"""Logs → events → features."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, flow

from flows.stages import READING, keep_or_make
from pipeline.config import Config
from pipeline.diagnostics import quality
from pipeline.features import build
from pipeline.sources import contract
from pipeline.tracking import Run

write_events = Task(contract.write_events, name="write events", **READING)
build_features = Task(build.build, name="build features")
check_quality = Task(quality.check, name="check quality")


@flow(name="features")
def features(config: Config, run: Run) -> tuple[Path, Path]:
    """Check the source against the contract, make everything the models see, and look at every day of it.

    Returns the folders of events and features. Raises InputError where `[quality]` says that a day stops the run.
    """
    events = keep_or_make(
        write_events,
        "events",
        root=config.root,
        run=run,
        reads=contract.source_files(config.source),
        tell=("events", "users", "items", "rejected_rows"),
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
    checked = keep_or_make(
        check_quality,
        "quality",
        events,
        made,
        root=config.root,
        run=run,
        tell=("quality_warnings",),
        settings=config.quality,
        contract=config.contract,
    )
    quality.tell(checked, config.quality)
    return events, made
