from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import CHAMPION, client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def model(folder: Path, weights: bytes) -> Path:
    made = folder / f"fine-{weights.hex()}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(weights)
    (made / "schema.json").write_text("{}")
    (made / "table.parquet").write_bytes(b"not part of the model")
    return made


def test_a_run_with_its_stages(folder: Path) -> None:
    picture, page = folder / "plot.png", folder / "report.html"
    with tracking.start(folder, "small") as run:
        picture.write_bytes(b"png")
        page.write_text("<p>")
        run.configuration({"name": "small"})
        run.parameters({"fine": {"model": "star", "options": {}}, "seed": 0, "long": "x" * 900})
        run.data(folder / "events-0123", "0123")
        with run.child("fine") as child:
            child.log({"loss": 2.0}, 1)
            child.log({"loss": 1.0}, 2)
        run.artefacts([page, picture])

    store = client(folder)
    parent, nested = store.get_run(run.id), store.get_run(child.id)
    assert parent.info.run_name == "small"
    assert parent.info.status == nested.info.status == "FINISHED"
    assert nested.data.tags["mlflow.parentRunId"] == run.id
    assert [(one.step, one.value) for one in store.get_metric_history(child.id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert parent.data.params == {"fine.model": "star", "seed": "0", "long": "x" * 500}
    assert parent.data.tags["data"] == parent.inputs.dataset_inputs[0].dataset.digest == "0123"
    assert parent.inputs.dataset_inputs[0].dataset.name == "events"
    assert sorted(one.path for one in store.list_artifacts(run.id)) == ["config.json", "plot.png", "report.html"]
    assert (folder / "mlflow.db").exists()
    assert sorted(path.name for path in (folder / "mlruns").iterdir()) == [run.id]


def test_a_failure_is_remembered_and_passes(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.start(folder, "small") as run, run.child("fine") as child:
        raise ZeroDivisionError
    assert client(folder).get_run(run.id).info.status == client(folder).get_run(child.id).info.status == "FAILED"


def test_the_champion_moves_only_for_better_or_other_data(folder: Path) -> None:
    def register(weights: bytes, value: float, data: str) -> bytes:
        """Register a model and return the weights of the champion."""
        made = next(folder.glob(f"fine-{weights.hex()}"), None) or model(folder, weights)
        with tracking.start(folder, "small") as run:
            tracking.register(run, "recfunnel-fine", made, fingerprint=weights.hex(), data=data, value=value)
        copy = tracking.champion(folder, "recfunnel-fine")
        assert sorted(path.name for path in copy.iterdir()) == ["model.safetensors", "schema.json"]
        return (copy / "model.safetensors").read_bytes()

    assert register(b"first", 0.5, "monday") == b"first"
    assert register(b"worse", 0.4, "monday") == b"first"
    assert register(b"equal", 0.5, "monday") == b"equal"
    assert register(b"better", 0.6, "monday") == b"better"
    assert register(b"first", 0.5, "monday") == b"better"
    assert register(b"worse", 0.1, "tuesday") == b"worse"

    versions = client(folder).search_model_versions("name = 'recfunnel-fine'")
    assert len(versions) == 5  # the first was registered twice and has one version
    alias = client(folder).get_model_version_by_alias("recfunnel-fine", CHAMPION)
    assert (alias.tags["value"], alias.tags["data"]) == ("0.1", "tuesday")


def test_the_configuration_is_kept_whole(folder: Path) -> None:
    with tracking.start(folder, "small") as run:
        run.configuration({"fine": {"model": "star"}})
    path = folder / "mlruns" / run.id / "artifacts/config.json"
    assert json.loads(path.read_text()) == {"fine": {"model": "star"}}
