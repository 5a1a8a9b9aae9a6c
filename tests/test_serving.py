"""The commands `bundle`, `serve` and `collect` on the tiny run, as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import polars as pl
import pytest
from conftest import CONFIGS, TINY, recfunnel, service

from pipeline.serving import registry

COUNTED_SECONDS = 2.5


def call(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{address}{path}", data, {"Content-Type": "application/json"}), timeout=20) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told


@pytest.fixture
def folder(bundles: Path, tmp_path: Path) -> Path:
    """A data folder with the tiny run's bundle."""
    name = registry.read_alias(bundles, "champion")["bundle"]
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / name).symlink_to(bundles / name)
    shutil.copyfile(bundles / "champion.json", tmp_path / "bundles" / "champion.json")
    return tmp_path


@pytest.mark.slow
def test_bundle_serve_and_collect(small_run: Path, server: str) -> None:
    here = small_run.parents[1]
    process = recfunnel("bundle", CONFIGS / "small.toml", *TINY, server=server, folder=here)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    made = here / out.split("done: ")[1].split(" ·")[0]
    assert registry.read_alias(here / "data/bundles", "champion")["bundle"] == made.name
    assert "recfunnel serve --folder data" in out
    with service(here / "data", 'diversity="mmr"') as (address, _):
        body = {"user": "17", "domain": "home", "k": 5}
        first = call(address, "/recommend", body)
        assert (first["bundle"], first["degraded"], len(first["items"])) == (made.name, [], 5)
        item = first["items"][0]["item"]
        event = {"user": "17", "domain": "home", "item": item, "labels": {"click": 1}, "request": first["request"]}
        assert call(address, "/events", {"events": [event]}) == {"accepted": 1}
        second = call(address, "/recommend", body)
        assert item not in [one["item"] for one in second["items"]]
        assert call(address, f"/explain/{second['request']}")["history"][0]["item"] == item
        assert call(address, f"/explain/{second['request']}/{item}")["stage"] == "exposure"
    process = recfunnel("collect", server="", folder=here)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    told = pl.read_parquet(here / out.split("done: ")[1].strip())
    assert told.select("user_id", "item_id", "domain", "shown", "click").rows() == [("17", item, "home", True, 1)]
    process = recfunnel("bundle", CONFIGS / "small.toml", "--roll-back", server=server, folder=here)
    assert "there is no bundle before" in process.communicate(timeout=60)[1]


def test_no_acknowledged_event_is_lost_by_a_kill(folder: Path) -> None:
    with service(folder) as (address, process):
        items = [one["item"] for one in call(address, "/recommend", {"user": "3", "domain": "home"})["items"]]
        for item in items[:3]:
            event = {"user": "3", "domain": "home", "item": item, "labels": {"click": 1}}
            call(address, "/events", {"events": [event]})
        process.kill()
    with service(folder) as (address, _):
        answer = call(address, "/recommend", {"user": "3", "domain": "home"})
        history = call(address, f"/explain/{answer['request']}")["history"]
        assert [one["item"] for one in history[:3]] == items[2::-1]
        assert not {*items[:3]} & {one["item"] for one in answer["items"]}


@pytest.mark.parametrize("processes", [1, 2])
def test_it_ends_when_asked_and_answers_what_was_under_way(folder: Path, processes: int) -> None:
    answered, refused = [], []

    def ask(address: str) -> None:
        while True:
            try:
                answered.append(len(call(address, "/recommend", {"user": "3", "domain": "home", "k": 4})["items"]))
            except HTTPError as error:
                refused.append(error.code)
            except OSError:
                return

    with service(folder, f"processes={processes}") as (address, process):
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        for thread in threads:
            thread.join()
    assert len(answered) > 4
    assert set(answered) == {4}
    assert set(refused) <= {503}


def test_two_processes_answer_as_one(folder: Path) -> None:
    """What was told, shown, left behind and withdrawn counts, whichever of them answers, and after one was killed."""

    def complete(address: str) -> None:
        while call(address, "/readyz")["workers"] < 2:
            time.sleep(0.1)

    with service(folder, "processes=2") as (address, process), ThreadPoolExecutor() as pool:
        complete(address)
        shown: list[str] = []
        for step in range(5):
            if step == 3:
                workers = [worker for child in children(process.pid) for worker in children(child)]
                os.kill(workers[0], signal.SIGKILL)
                while call(address, "/readyz")["workers"] == 2:
                    time.sleep(0.01)
                complete(address)
            time.sleep(COUNTED_SECONDS)
            asked = [pool.submit(call, address, "/recommend", {"user": "3", "domain": "home", "k": 6}) for _ in "ab"]
            one, other = (asking.result() for asking in asked)
            assert {one["worker"], other["worker"]} == {0, 1}
            assert one["degraded"] == other["degraded"] == []
            first, second = ([(each["item"], each["route"]) for each in answer["items"]] for answer in (one, other))
            assert first == second
            items = [item for item, _ in first]
            assert not {*shown} & {*items}
            event = {"user": "3", "domain": "home", "item": items[0], "labels": {"click": 1}}
            call(address, "/events", {"events": [event]})
            call(address, "/withdraw", {"items": [items[1]]})
            for answer in (one, other):
                told = call(address, f"/explain/{answer['request']}")
                assert [each["item"] for each in told["history"][:step]] == shown[::2][::-1]
                assert {route["route"]: route["state"] for route in told["routes"]}["cache"] == "ok" or not step
            shown += items[:2]


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bundle_is_swapped_and_a_corrupt_one_refused_while_it_serves(folder: Path, processes: int) -> None:
    good = registry.read_alias(folder / "bundles", "champion")["bundle"]
    shutil.copytree(folder / "bundles" / good, folder / "bundles" / "bundle-corrupt")
    (folder / "bundles/bundle-corrupt/config.json").write_text("{}")
    shutil.copytree(folder / "bundles" / good, folder / "bundles" / "bundle-twin")
    with service(folder, f"processes={processes}") as (address, _):
        registry.promote(folder / "bundles", "champion", "bundle-corrupt")
        for _ in range(100):
            told = call(address, "/readyz")
            if told["refused"]:
                break
            time.sleep(0.1)
        assert told["bundle"] == good
        assert "config.json: not the file that was written" in told["refused"]["why"]
        registry.promote(folder / "bundles", "champion", "bundle-twin")
        for _ in range(200):
            answer = call(address, "/recommend", {"user": "3", "domain": "home"})
            assert answer["degraded"] == []
            if answer["bundle"] == "bundle-twin":
                break
            time.sleep(0.1)
        assert answer["bundle"] == "bundle-twin"
        assert call(address, "/readyz")["refused"] is None


def test_an_alias_that_names_nothing(tmp_path: Path) -> None:
    for command in ("serve", "collect"):
        process = recfunnel(command, "--folder", tmp_path, server="", folder=tmp_path)
        assert "names no bundle that is there; recfunnel bundle CONFIG makes one" in process.communicate(timeout=60)[1]
        assert process.returncode == 2
