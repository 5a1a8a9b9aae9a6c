"""README's own words: its example configuration, its commands, its tree."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from typer.main import get_command

from flows.cli import app
from pipeline import config
from pipeline.bench import BENCHES
from pipeline.sources import contract

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_of_a_mapped_log_loads_and_reads_such_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "shop.toml").write_text(block)
    (tmp_path / "logs").mkdir()
    pl.DataFrame(
        {
            "uid": [1, 1, 2],
            "sku": ["a", "b", "a"],
            "ts": [1_700_000_000, 1_700_000_060, 1_700_000_120],
            "page": ["home", "home", "search"],
            "clicked": [1, 0, 1],
            "bought": [0, 0, 1],
        }
    ).write_parquet(tmp_path / "logs/impressions-1.parquet")
    (tmp_path / "logs/products.csv").write_text(
        "sku,seller,category,listed\na,s1,shoes,1690000000\nb,s2,hats,1695000000\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = config.load(Path("shop.toml"))
    found = contract.check(settings.source, settings.contract)
    assert (found["events"], found["items"], found["users"]) == (3, 2, 2)
    assert found["rejected_rows"] == 0


def test_every_command_and_benchmark_named_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"recfunnel ([a-z-]+)", README))
    assert named <= set(commands)
    assert {"run", "demo", "check-data", "report", "zoo", "ui", "schedule", "bench"} <= named
    assert set(re.findall(r"recfunnel bench ([a-z]+)", README)) <= {*BENCHES, "all"}


def test_every_file_and_folder_named_exists() -> None:
    for name in re.findall(r"`((?:flows|models|pipeline|data)/[\w/.]*)`", README):
        assert (ROOT / name).exists(), name


def test_no_figure_is_missing() -> None:
    assert "@@" not in README
