"""Starts the processes that train one model together, by torch's own launcher, and makes a process one of them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.config import Machines
from pipeline.ranking.fit import Log

HERE = Machines()
RUN = "recfunnel"
JOB, TOLD = "job.json", "told.json"
PR_SET_PDEATHSIG = 1


def together(
    stage: Callable[..., dict[str, float]],
    arguments: Mapping[str, Any],
    *,
    log: Log,
    processes: int,
    machines: Machines,
) -> dict[str, float]:
    """What `stage(**arguments, log=log)` returns, run in several processes at once (`pipeline.ranking.worker`).

    Each has the same arguments, but for the folder `out`: what counts is what the first writes. Paths, numbers and
    settings are told in a file beside `out`, which all hosts have to see at the same place. Raises as `launch` does.
    """
    folder = arguments["out"].resolve().parent / f".{stage.__name__}-together"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    told = {"stage": [stage.__module__, stage.__name__], "arguments": {**arguments}}
    (folder / JOB).write_text(json.dumps(told, default=_told))
    try:
        launch("pipeline.ranking.worker", folder / JOB, processes=processes, machines=machines)
        ended = json.loads((folder / TOLD).read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for epoch in ended["epochs"]:
        log(epoch["metrics"], epoch["epoch"])
    return dict(ended["metrics"])


def launch(module: str, job: Path, *, processes: int, machines: Machines) -> None:
    """Run `python -m module job` in this host's share of the processes, and wait for all of them.

    Of several hosts this is the first: it says what to start on the others, and waits until they are there. Raises
    `RuntimeError` with what the first process to fail said.
    """
    here = processes // machines.hosts
    if machines.hosts > 1:
        others = f"--nnodes {machines.hosts} --nproc-per-node {here} --rdzv-id {RUN} --rdzv-backend c10d"
        command = f"torchrun {others} --rdzv-endpoint {machines.rendezvous} -m {module} {job}"
        Console(stderr=True).print(
            f"waiting for {machines.hosts - 1} more host(s), there run: {command}", soft_wrap=True
        )
    plan = LaunchConfig(
        min_nodes=machines.hosts,
        max_nodes=machines.hosts,
        nproc_per_node=here,
        run_id=RUN,
        rdzv_backend="c10d",
        rdzv_endpoint=machines.rendezvous or "localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(plan, sys.executable)("-m", module, str(job))
    except ChildFailedError as error:
        place, failure = error.get_first_failure()
        raise RuntimeError(f"process {place} of {processes} failed: {failure.message}") from error


@contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that a launcher has started: over NCCL what lies on GPUs, over Gloo what does not.

    The host's processes share its cores, unless `OMP_NUM_THREADS` says how many each has. On Linux a process ends with
    its launcher, however that ends.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _told(value: object) -> object:
    """A path or the settings, for JSON."""
    return str(value.resolve()) if isinstance(value, Path) else vars(value)
