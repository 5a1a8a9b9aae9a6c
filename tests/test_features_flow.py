"""The jobs of the features through Prefect, here and on Ray: the same bytes, and a job that dies is run again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from event_tables import CONTRACT, FEATURES, write_events

from pipeline.config import Split
from pipeline.features.build import build

ray = pytest.mark.skipif(importlib.util.find_spec("prefect_ray") is None, reason="needs the extra `cluster`")

SCRIPT = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from event_tables import CONTRACT, FEATURES
from flows.features import jobs_of
from pipeline.config import Split
from pipeline.features import build, facts

root, engine, death = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
write = facts.write

def dies_once(job):
    first = job.side == "user" and job.parts == (1,) and not (root / "died").exists()
    if first:
        (root / "died").touch()
        if death == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the first try fails")
    write(job)

facts.write = dies_once
facts.write.__module__ = "pipeline.features.facts"
settings = replace(FEATURES, parts=2, engine=engine, workers=3)
(root / engine).mkdir()
with jobs_of(settings) as each:
    build.build(root / "events", root / engine, features=settings, contract=CONTRACT, split=Split(), each=each)
"""


TOGETHER = """
import threading, time
from dataclasses import replace
from event_tables import FEATURES
from flows.features import jobs_of

meet, lock, running, most = threading.Barrier(2, timeout=60), threading.Lock(), set(), []

def job(value):
    with lock:
        running.add(value)
        most.append(len(running))
    meet.wait()
    time.sleep(0.05)
    with lock:
        running.remove(value)
    return value

with jobs_of(replace(FEATURES, workers=2)) as each:
    assert each(job, [3, 1, 2, 4]) == [3, 1, 2, 4]
assert max(most) == 2, most
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    root = tmp_path_factory.mktemp("flow")
    events = write_events(root / "events", events=600, users=50, items=30, days=4)
    (root / "plain").mkdir()
    build(events, root / "plain", features=replace(FEATURES, parts=2), contract=CONTRACT, split=Split())
    return root, contents(root / "plain")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(script: str, place: Path, server: str, *arguments: str) -> None:
    """Run a script in a process of its own."""
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    environment = {
        **os.environ,
        "PREFECT_API_URL": server,
        "PREFECT_HOME": str(place / "prefect"),
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (place / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(place / "script.py"), *arguments],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def run(root: Path, place: Path, engine: str, death: str, server: str) -> dict[str, bytes]:
    (place / "events").symlink_to(root / "events")
    python(SCRIPT, place, server, str(place), engine, death)
    assert (place / "died").exists()
    return contents(place / engine)


def test_as_many_jobs_run_at_once_as_there_are_workers(server, tmp_path) -> None:
    """Each waits for another, so that one at a time would never end; the results come in order."""
    python(TOGETHER, tmp_path, server)


def test_prefect_gives_the_bytes_of_a_plain_call_and_tries_a_failed_job_again(expected, server, tmp_path) -> None:
    root, plain = expected
    assert run(root, tmp_path, "local", "raise", server) == plain


@ray
def test_ray_gives_the_same_bytes_even_if_a_worker_dies(expected, server, tmp_path) -> None:
    root, plain = expected
    assert run(root, tmp_path, "ray", "kill", server) == plain
