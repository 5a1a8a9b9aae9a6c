"""Starts the processes that train one model together, by torch's own launcher, and makes a process one of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.config import Machines

RUN = "recfunnel"
PR_SET_PDEATHSIG = 1


def launch(module: str, job: Path, *, processes: int, machines: Machines) -> None:
    """Run `python -m module job` in this host's share of the processes, and wait for all of them.

    Of several hosts this is the first: it says what to start on the others, and waits until they are there. Raises
    `RuntimeError` with what the first process to fail said.
    """
    here = processes // machines.hosts
    if machines.hosts > 1:
        others = f"--nnodes {machines.hosts} --nproc-per-node {here} --rdzv-id {RUN} --rdzv-backend c10d"
        command = f"torchrun {others} --rdzv-endpoint {machines.rendezvous} -m {module} {job.resolve()}"
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
