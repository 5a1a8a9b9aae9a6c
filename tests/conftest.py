"""What all tests share: single-threaded workers, shapes checked in `models`, one Prefect server and one small run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("models", "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # a busy machine is no error
settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

if TYPE_CHECKING:
    from pipeline.serving.bundle import Made

TINY = (
    "source.users=400",
    "source.items=250",
    "source.impressions=8000",
    "recall.per_route=60",
    "recall.merged=120",
    "recall.options.two_tower.epochs=1",
    "coarse.keep=60",
    "coarse.epochs=1",
    "fine.epochs=1",
    "fine.keep=20",
    "fine.trials=5",
    "evaluation.requests=100",
    "evaluation.cutoffs=[10, 20]",
    "evaluation.resamples=100",
)


def recfunnel(*arguments: str | Path, server: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, in an empty folder, with Prefect's server at `server`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": server,
        "PREFECT_HOME": str(folder / "prefect"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test session see."""
    here = tmp_path_factory.getbasetemp()
    return here.parent if "PYTEST_XDIST_WORKER" in os.environ else here


@pytest.fixture(scope="session")
def server(shared: Path) -> Iterator[str]:
    """Address of the API of a Prefect server, which each worker has for itself: two cannot make one database."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    os.environ["PREFECT_HOME"] = str(shared / f"prefect-{worker}")
    from flows.servers import prefect_server

    with prefect_server(shared, port=0) as address:
        yield f"{address}/api"


@pytest.fixture(scope="session")
def small_run(shared: Path, server: str) -> Path:
    """Folder of a finished tiny run; `latest.json` there names its parts."""
    folder = shared / "small"
    with FileLock(shared / "small.lock"):
        if not (folder / "data/small/latest.json").exists():
            process = recfunnel("run", CONFIGS / "small.toml", *TINY, server=server, folder=folder)
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, out + errors
            (folder / "stdout.txt").write_text(out)
    return folder / "data/small"


CONFIGS = Path(__file__).parents[1] / "flows/configs"


def latest(run: Path) -> dict[str, Path]:
    """The folders of a run by stage; they are named relative to where it was started."""
    folders: dict[str, str] = json.loads((run / "latest.json").read_text())["folders"]
    return {name: run.parents[1] / path for name, path in folders.items()}


PATIENT = "serve.deadlines={routes=3e4, coarse=3e4, fine=3e4, final=3e4}"
ROUTES = ("two_tower", "item_cf", "tag", "content", "follow", "hot", "fresh", "segment_hot", "cache")


@pytest.fixture(scope="session")
def bundles(shared: Path, small_run: Path) -> Path:
    """A folder with a bundle of the tiny run, which the alias `champion` names; it has more routes than the run."""
    from pipeline.config import load
    from pipeline.serving import bundle, registry

    place = shared / "bundles"
    with FileLock(shared / "bundles.lock"):
        if not (place / "champion.json").exists():
            routes = f"recall.routes={json.dumps(ROUTES)}"
            settings = load(CONFIGS / "small.toml", [*TINY, routes, "serve.live_users=50", PATIENT])
            registry.promote(place, "champion", bundle.write(place, made_by(small_run), settings).name)
    return place


def made_by(run: Path) -> Made:
    """The folders of a run that a bundle is made of."""
    from pipeline.serving import bundle

    folders = latest(run)
    return bundle.Made(
        **{name: folders[name] for name in ("features", "coarse", "fine")},
        quota=folders["recall_validation"] / "quota.json",
        routes={"two_tower": folders["two_tower"]},
    )


@contextmanager
def service(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of a service on a data folder; it is killed in the end."""
    process = recfunnel("serve", "--folder", folder, "--port", "0", *arguments, server="", folder=folder)
    assert process.stdout
    address = process.stdout.readline().strip()
    try:
        assert address.startswith("http://127.0.0.1:"), process.communicate()[1]
        for _ in range(600):
            with suppress(OSError), urlopen(f"{address}/readyz", timeout=20):
                break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def served(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service of the tiny run's bundle."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "bundles").symlink_to(bundles)
    with service(folder) as (address, _):
        yield address
