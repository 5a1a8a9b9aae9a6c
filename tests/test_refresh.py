"""The log grows by a day: the champions go on, and new items are recalled by the refreshed index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import TINY, latest, recfunnel

from pipeline import tracking
from pipeline.ranking.carry import Known
from pipeline.tracking import CHAMPION, client

CONFIG = """
name = "shop"
[source]
kind = "mapped"
[source.events]
path = "log/events-*.parquet"
[source.events.columns]
user_id = "user_id"
item_id = "item_id"
domain = "domain"
time = "time"
click = "click"
like = "like"
[source.items]
path = "log/items.parquet"
columns = { item_id = "item_id", published = "published", author_id = "author_id", category = "category", tag = "tag" }
[source.users]
path = "log/users.parquet"
columns = { user_id = "user_id", segment = "segment" }
[contract]
tasks = ["click", "like"]
[features]
user = ["segment"]
admit_after = 5
"""
SETTINGS = (*TINY[3:], "fine.model=flat_dnn", "fine.learning_rate=1e-6", "refresh.learning_rate=0.005")


@pytest.fixture(scope="module")
def shop(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small run's log but for its last two days, which `grow` adds."""
    home = tmp_path_factory.mktemp("shop")
    (home / "log").mkdir()
    (home / "shop.toml").write_text(CONFIG)
    events = latest(small_run)["events"]
    log = pl.read_parquet(events / "events.parquet")
    days = log.with_columns(day=pl.col("time").dt.date().cast(pl.String)).partition_by(
        "day", as_dict=True, include_key=False
    )
    for (day,), part in days.items():
        part.write_parquet(home / f"log/{day}.parquet")
    for name in ("items", "users"):
        pl.read_parquet(events / f"{name}.parquet").write_parquet(home / f"log/{name}.parquet")
    for path in sorted((home / "log").glob("20*.parquet"))[:-2]:
        path.rename(path.with_name(f"events-{path.name}"))
    return home


def grow(home: Path) -> None:
    for path in (home / "log").glob("20*.parquet"):
        path.rename(path.with_name(f"events-{path.name}"))


def command(name: str, home: Path, server: str, *overrides: str) -> tuple[int, str, str]:
    process = recfunnel(name, "shop.toml", *SETTINGS, *overrides, server=server, folder=home)
    out, errors = process.communicate(timeout=280)
    return process.returncode, out, errors


@pytest.mark.slow
def test_refreshing_promotes_what_is_better_and_keeps_the_champion_else(shop: Path, server: str) -> None:
    status, out, errors = command("refresh", shop, server)
    assert status == 2, out
    assert "recfunnel run first" in errors
    status, out, errors = command("run", shop, server)
    assert status == 0, out + errors
    data = shop / "data"
    before = {name: Known.read(tracking.champion(data, name)) for name in ("recfunnel-fine", "recfunnel-two-tower")}
    status, out, errors = command("refresh", shop, server)
    assert status == 2, out
    assert "no impression since the champion" in errors

    grow(shop)
    status, out, errors = command("refresh", shop, server, "refresh.learning_rate=1.0")
    assert status == 0, out + errors
    assert "the champion stays" in out.splitlines()[-1]
    assert client(data).get_model_version_by_alias("recfunnel-fine", CHAMPION).version == 1

    status, out, errors = command("refresh", shop, server)
    assert status == 0, out + errors
    assert "done: promoted" in out.splitlines()[-1]
    for name, known in before.items():
        assert client(data).get_model_version_by_alias(name, CHAMPION).version == 2
        now = Known.read(tracking.champion(data, name))
        assert now.until > known.until
        assert now.moved(known)["ids_entered"] > 0
    gate = json.loads(next((data / "shop").glob("gate-*/gate.json")).read_text())
    assert set(gate) >= {"gain", "promoted"}
    ids = np.load(next((data / "shop").glob("recall_test-*/two_tower/index/ids.npy")))
    assert len(ids) > 0
