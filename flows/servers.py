"""The two user interfaces, and the Prefect server that the schedule needs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from pipeline import tracking

PATIENCE = 120.0


@contextmanager
def prefect_server(folder: Path, port: int = 4200) -> Iterator[str]:
    """A Prefect server on the runs of a data folder while the block lasts; yields its address."""
    port = free_port(port)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, f"http://127.0.0.1:{port}/api/health", {"PREFECT_HOME": str(prefect_home(folder))}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_ui(folder: Path, port: int = 5000) -> Iterator[str]:
    """MLflow's pages on the runs of a data folder while the block lasts; yields their address."""
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking.database(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with _running(command, f"http://127.0.0.1:{port}/health", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        yield f"http://127.0.0.1:{port}"


def prefect_home(folder: Path) -> Path:
    """Where the Prefect runs of a data folder are kept: in it, unless `PREFECT_HOME` says otherwise.

    Prefect reads the variable when it is imported, so this is called before.
    """
    home = Path(os.environ.setdefault("PREFECT_HOME", str(folder.resolve() / "prefect")))
    home.mkdir(parents=True, exist_ok=True)
    return home


def free_port(wanted: int) -> int:
    """The port if nothing listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


@contextmanager
def _running(command: list[str], health: str, environment: dict[str, str]) -> Iterator[None]:
    with TemporaryFile("w+") as said:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=said, stderr=said, start_new_session=True
        )
        try:
            _wait(server, health, said)
            yield
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask the server and its children to end, and end them when they have not after ten seconds."""
    for last_word in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, last_word)
            server.wait(timeout=10)


def _wait(server: subprocess.Popen[bytes], health: str, said: IO[str]) -> None:
    """Return when the server answers; raise with its own words when it ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            said.seek(0)
            raise RuntimeError(f"the server ended with status {server.returncode}: {said.read()}")
        try:
            with urlopen(health, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"no answer from {health} within {PATIENCE:.0f} s")
