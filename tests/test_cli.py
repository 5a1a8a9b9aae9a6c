"""The commands, and what they say to bad input: one clear message and status 2, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import polars as pl
import pytest
from conftest import CONFIGS, TINY, latest, recfunnel

from flows.cli import main


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line in this process and return its status."""
    monkeypatch.setattr(sys, "argv", ["recfunnel", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "demo", "check-data", "report", "ui", "schedule", "bench"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nowhere.toml"], "nowhere.toml: no such configuration; see flows/configs/"),
        (["run", CONFIGS / "small.toml", "fine.modle=star"], "fine.modle"),
        (["run", CONFIGS / "small.toml", "fine.options.widht=8"], "pepnet has no option 'widht'; it has"),
        (["run", CONFIGS / "small.toml", "oops"], "'oops' is not an assignment; write key=value"),
        (["check-data", CONFIGS / "kuairand.toml", "source.folder=/nowhere"], "/nowhere"),
        (["features", CONFIGS / "small.toml", "--explain", "1", "2", "soon"], "'soon' is no time; write"),
        (["report", "never"], "never: no finished run in data/never"),
        (["bench", "nothing"], "'nothing' is no benchmark; it is one of all"),
    ],
)
def test_a_mistake_is_told_in_plain_words(
    arguments: list[str | Path], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.startswith("error ")
    assert "Traceback" not in captured.err + captured.out


def test_check_data_counts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "check-data", CONFIGS / "small.toml", *TINY[:3]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["users", "400"] in [line.split() for line in lines]
    assert lines[-1] == "done: the source keeps the contract"
    assert list(tmp_path.iterdir()) == []


def test_features_alone_are_kept_and_explained(small_run: Path, server: str) -> None:
    """The small run has made them already; a row of its log is explained by raw ids."""
    home = small_run.parents[1]
    arguments = ("features", CONFIGS / "small.toml", *TINY)
    out, errors = recfunnel(*arguments, server=server, folder=home).communicate(timeout=180)
    assert out.count("unchanged, kept") == 2, out + errors
    assert f"│ {8000:,} " in out
    assert str(latest(small_run)["features"].relative_to(home)) in out
    row = pl.read_parquet(latest(small_run)["events"] / "events.parquet").row(7_000, named=True)
    asked = (str(row["user_id"]), str(row["item_id"]), row["time"].isoformat())
    out, errors = recfunnel(*arguments, "--explain", *asked, server=server, folder=home).communicate(timeout=180)
    assert f"user {asked[0]} · item {asked[1]} · domain {row['domain']}" in out, errors
    assert f"an impression of the log: click {row['click']}" in out
    assert max(map(len, out.splitlines()[2:])) <= 100


def test_report_prints_the_run_again(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small_run.parents[1])
    monkeypatch.setenv("COLUMNS", "100")
    assert command(monkeypatch, "report", "small") == 0
    by_name = capsys.readouterr().out
    assert command(monkeypatch, "report", "data/small") == 0
    assert capsys.readouterr().out == by_name
    assert by_name.splitlines()[-1].startswith("report data/small/report-")
    assert by_name.splitlines()[-2] in (small_run.parents[1] / "stdout.txt").read_text()


def test_a_mistake_inside_a_flow_is_told_in_plain_words(server: str, tmp_path: Path) -> None:
    process = recfunnel("run", CONFIGS / "kuairand.toml", "source.folder=/nowhere", server=server, folder=tmp_path)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith("error ")
    assert "/nowhere" in errors
    assert "Traceback" not in out + errors


def test_a_full_disk_is_told_and_finished_stages_stay(server: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        data = disk / "data"
        process = recfunnel(
            "run", CONFIGS / "small.toml", *TINY, f"folder={data}", server=server, folder=tmp_path / "home"
        )
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 2, out + errors
        assert "the disk is full" in errors
        assert "free some space and run again" in errors
        assert "Traceback" not in out + errors
        assert list(data.glob("small/events-*/manifest.json"))
        assert not list(data.glob("small/.*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ui_serves_both_pages_until_interrupted(tmp_path: Path, server: str) -> None:
    process = recfunnel("ui", server=server, folder=tmp_path)
    assert process.stdout is not None
    pages = dict(process.stdout.readline().split() for _ in range(2))
    assert process.stdout.readline() == "Ctrl-C ends both\n"
    for name, title in {"MLflow": "MLflow", "Prefect": "Prefect"}.items():
        with urlopen(pages[name], timeout=30) as page:
            assert title in page.read().decode()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ended\n"), errors


def test_schedule_serves_the_funnel_with_its_parameters(tmp_path: Path, server: str) -> None:
    process = recfunnel("schedule", CONFIGS / "small.toml", *TINY, "--cron=30 5 * * *", server=server, folder=tmp_path)
    assert process.stdout is not None
    address = process.stdout.readline().split()[1].removesuffix("/deployments")
    while "is being served" not in (line := process.stdout.readline()):
        assert line or process.poll() is None, process.communicate()
    ask = Request(f"{address}/api/deployments/filter", b"{}", {"Content-Type": "application/json"})
    with urlopen(ask, timeout=30) as answer:
        (deployment,) = json.load(answer)
    assert deployment["name"] == "daily"
    assert deployment["parameters"] == {"config": str(CONFIGS / "small.toml"), "overrides": list(TINY)}
    assert deployment["schedules"][0]["schedule"]["cron"] == "30 5 * * *"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
