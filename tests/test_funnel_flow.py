"""The whole small funnel through the command line, unbroken and killed at one stage after another."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import CONFIGS, TINY, latest, recfunnel

from pipeline import lake, tracking

STAGES = (
    "events",
    "features",
    "quality",
    "two_tower",
    "recall_validation",
    "fine",
    "coarse",
    "recall_test",
    "ranked",
    "evaluation",
    "report",
)
KILLED_IN = ("features", "two_tower", "fine", "recall_test", "ranked", "evaluation")


def start(server: str, folder: Path) -> subprocess.Popen[str]:
    return recfunnel("run", CONFIGS / "small.toml", *TINY, server=server, folder=folder)


def kill_in(stage: str, process: subprocess.Popen[str], root: Path) -> None:
    """Kill the process as soon as the stage's temporary folder is seen."""
    end = time.monotonic() + 300
    while not list(root.glob(f".{stage}-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not list(root.glob(f"{stage}-*"))


def test_a_run_tells_its_stages_and_ends_with_its_report(small_run: Path) -> None:
    lines = (small_run.parents[1] / "stdout.txt").read_text().splitlines()
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert [word for word in first_words if word in STAGES][: len(STAGES)] == list(STAGES)
    assert max(map(len, lines)) <= 130
    assert lines[-1].startswith(
        f"done: report data/small/{next(small_run.glob('report-*')).name}/report.html · MLflow run"
    )


def test_every_artefact_is_what_its_manifest_says(small_run: Path) -> None:
    for stage in STAGES:
        (folder,) = small_run.glob(f"{stage}-*")
        assert lake.read_manifest(folder)["files"] == lake.describe(folder)
    assert not list(small_run.glob(".*"))


def test_lists_are_as_long_as_asked_and_sorted_by_the_fused_score(small_run: Path) -> None:
    shown = pl.read_parquet(latest(small_run)["ranked"] / "ranked.parquet").filter("shown").sort("request", "rank")
    assert shown.group_by("request").len()["len"].max() == 20
    assert shown.select((pl.col("fused").diff() <= 0).over("request").all()).item()
    assert not shown.select("request", "item").is_duplicated().any()


def test_mlflow_holds_the_run_its_stages_and_the_champions(small_run: Path) -> None:
    folder = small_run.parent
    store = tracking.client(folder)
    runs = store.search_runs([store.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "small"]
    runs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in runs} == set(STAGES)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["final_ndcg_20"] > 0
    assert parent.data.params["fine.model"] == "pepnet"
    artefacts = {one.path for one in store.list_artifacts(parent.info.run_id)}
    assert {"config.json", "report.html"} <= artefacts
    assert any(path.endswith(".png") for path in artefacts)
    (quality,) = [run for run in runs if run.info.run_name == "quality"]
    assert {"quality_warnings", "psi_max"} <= set(quality.data.metrics)
    assert [one.path for one in store.list_artifacts(quality.info.run_id)] == ["quality.html"]
    (fine,) = [run for run in runs if run.info.run_name == "fine"]
    assert len(store.get_metric_history(fine.info.run_id, "loss")) == 1
    for name in ("two-tower", "coarse", "fine"):
        assert list(tracking.champion(folder, f"recfunnel-{name}").glob("*.safetensors"))


@pytest.mark.slow
def test_killed_at_stage_after_stage_it_ends_with_the_same_bytes(small_run: Path, server: str, tmp_path: Path) -> None:
    root = tmp_path / "data/small"
    for stage in KILLED_IN:
        kill_in(stage, start(server, tmp_path), root)
    out, errors = start(server, tmp_path).communicate(timeout=300)
    assert "done: report" in out, out + errors
    assert out.count("unchanged, kept") == STAGES.index(KILLED_IN[-1])
    assert {path.name: lake.read_manifest(path) for path in root.iterdir() if path.is_dir()} == {
        path.name: lake.read_manifest(path) for path in small_run.iterdir() if path.is_dir()
    }
