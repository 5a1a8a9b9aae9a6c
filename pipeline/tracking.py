"""What MLflow remembers of a run: the only module that imports it.

One parent run a funnel run and a child run a stage, in `mlflow.db` of the data folder, artefacts beside it. A `Run` is
two small values, so that it travels through tasks; every call names its run, and nothing is active globally.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

EXPERIMENT = "recfunnel"
OPENS_WITH_RUNS = {"mlflow.experimentKind": "custom_model_development"}
CHAMPION = "champion"
LONGEST_PARAMETER = 500
MODEL_FILES = ("*.safetensors", "*.json")

for _chatty in ("mlflow", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Run:
    """An MLflow run, named by the data folder that holds the store and by its id."""

    folder: Path
    id: str

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step (an epoch); several steps of one name make a curve."""
        now = int(time.time() * 1000)
        logged = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(logged), 1000):
            client(self.folder).log_batch(self.id, metrics=logged[start : start + 1000])

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log a nested dictionary as parameters with dotted names."""
        params = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in flatten(values).items()]
        client(self.folder).log_batch(self.id, params=params)

    def configuration(self, values: dict[str, Any]) -> None:
        """Keep the resolved configuration as an artefact."""
        client(self.folder).log_dict(self.id, values, "config.json")

    def tag(self, **tags: str) -> None:
        client(self.folder).log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def data(self, source: Path, fingerprint: str) -> None:
        """Say what data the run is about, so that runs on the same data are found together."""
        dataset = Dataset(source.name.rsplit("-", 1)[0], fingerprint, "local", json.dumps({"uri": str(source)}))
        client(self.folder).log_inputs(self.id, [DatasetInput(dataset)])
        self.tag(data=fingerprint)

    def artefacts(self, paths: list[Path], place: str | None = None) -> None:
        """Copy files into the run, under the folder `place` of its artefacts."""
        for path in paths:
            client(self.folder).log_artifact(self.id, str(path), place)

    @contextmanager
    def child(self, name: str) -> Iterator[Run]:
        """A nested run, open while the block lasts."""
        with _open(self.folder, name, {"mlflow.parentRunId": self.id}) as run:
            yield run


@contextmanager
def start(folder: Path, name: str) -> Iterator[Run]:
    """A parent run, open while the block lasts; it ends as finished or, with an exception, as failed."""
    folder.mkdir(parents=True, exist_ok=True)
    with _open(folder, name, {}) as run:
        yield run


@contextmanager
def _open(folder: Path, name: str, tags: dict[str, str]) -> Iterator[Run]:
    store = client(folder)
    run = store.create_run(_experiment(folder), run_name=name, tags=tags).info.run_id
    status = "FAILED"
    try:
        yield Run(folder, run)
        status = "FINISHED"
    finally:
        store.set_terminated(run, status)


def register(run: Run, name: str, model: Path, *, fingerprint: str, data: str, value: float) -> str:
    """The version of a registered model that holds this folder's weights, made if there is none yet.

    A version is the folder's safetensors and JSON: no pickle, and nothing traced. The alias `champion` moves to it
    unless the present champion was measured on the same data (fingerprint `data`) and its `value` is higher.
    """
    store = client(run.folder)
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = store.search_model_versions(f"name = '{name}'")
    known = [one for one in versions if (one.tags["fingerprint"], one.tags["data"]) == (fingerprint, data)]
    if known:
        version = known[0]
        store.set_model_version_tag(name, version.version, "value", str(value))
    else:
        run.artefacts(sorted(path for pattern in MODEL_FILES for path in model.glob(pattern)), name)
        source = f"{store.get_run(run.id).info.artifact_uri}/{name}"
        tags = {"fingerprint": fingerprint, "data": data, "value": str(value)}
        version = store.create_model_version(name, source, run.id, tags=tags)
    present = store.get_registered_model(name).aliases.get(CHAMPION)
    better = [one for one in versions if one.tags["data"] == data and float(one.tags["value"]) > value]
    if present not in [one.version for one in better]:
        store.set_registered_model_alias(name, CHAMPION, version.version)
    return str(version.version)


def champion(folder: Path, name: str) -> Path:
    """A local copy of the files of a registered model's champion."""
    store = client(folder)
    version = store.get_model_version_by_alias(name, CHAMPION)
    uri = store.get_model_version_download_uri(name, version.version)
    return Path(download_artifacts(artifact_uri=uri, tracking_uri=database(folder)))


def champion_maker(folder: Path, name: str) -> str | None:
    """The name of the run that registered the champion; None where there is no champion."""
    store = client(folder)
    try:
        version = store.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return str(store.get_run(str(version.run_id)).info.run_name)


def database(folder: Path) -> str:
    """Address of a data folder's MLflow store."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


@cache
def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=database(folder), registry_uri=database(folder))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _experiment(folder: Path) -> str:
    """Id of the project's experiment, made at the first run."""
    store = client(folder)
    if found := store.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    place = (folder.resolve() / "mlruns").as_uri()
    return str(store.create_experiment(EXPERIMENT, artifact_location=place, tags=OPENS_WITH_RUNS))
