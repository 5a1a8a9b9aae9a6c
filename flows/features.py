"""Logs → events → features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.stages import READING, keep_or_make, numbers
from pipeline import config as configuration
from pipeline import lake, tracking
from pipeline.config import Config, Features
from pipeline.diagnostics import quality
from pipeline.features import build
from pipeline.features.days import Each, One, Result
from pipeline.lake import InputError
from pipeline.sources import contract
from pipeline.tracking import Run

write_events = Task(contract.write_events, name="write events", **READING)
build_features = Task(build.build, name="build features")
check_quality = Task(quality.check, name="check quality")

OBJECTS = 1 << 27  # bytes of Ray's store: jobs are paths and small values


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
        tell=("events", "users", "items", "rejected_rows", "missing_days"),
        source=config.source,
        contract=config.contract,
    )
    with jobs_of(config.features) as each:
        made = keep_or_make(
            build_features,
            "features",
            events,
            root=config.root,
            run=run,
            tell=("days", "days_computed", "missing_days", "late_events"),
            beside={"kept": config.root / "days", "each": each},
            features=replace(config.features, engine="local", address="", workers=0),
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


@contextmanager
def jobs_of(settings: Features) -> Iterator[Each]:
    """What calls a function as Prefect tasks, some at a time here or on the Ray cluster that the settings name.

    A task that fails, or whose worker dies, is tried again twice. The cluster must see the files of this machine; one
    that is started here ends with the block. Raises InputError where Ray is wanted and not installed.
    """
    with ExitStack() as cluster:

        def each(function: Callable[[One], Result], values: Sequence[One]) -> list[Result]:
            runner = _runner(settings, cluster)
            task = Task(function, name=function.__qualname__, retries=2, retry_condition_fn=is_not_the_input)

            @flow(name="feature jobs", task_runner=runner)
            def jobs() -> list[Result]:
                return [future.result() for future in [task.submit(value) for value in values]]

            return jobs()

        yield each


def _runner(settings: Features, cluster: ExitStack) -> TaskRunner[Any]:
    if settings.engine == "local":
        return ThreadPoolTaskRunner(max_workers=settings.workers or os.cpu_count())
    try:
        import ray
        from prefect_ray import RayTaskRunner
    except ModuleNotFoundError:
        raise InputError("features.engine: Ray is not installed; pip install 'recfunnel[cluster]'") from None
    if not ray.is_initialized():
        here = {"num_cpus": os.cpu_count(), "object_store_memory": OBJECTS, "include_dashboard": False}
        cluster.enter_context(ray.init(**({"address": settings.address} if settings.address else here)))
    runner: TaskRunner[Any] = RayTaskRunner()
    return runner


def is_not_the_input(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether trying again may help: anything failed but the input."""
    return not isinstance(state.data, InputError)


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
