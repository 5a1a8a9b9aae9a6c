"""What a worker of the service is, in a process of its own or beside the event loop: threads' numbers, memory, engines.

What an engine has opened stays while it is in service, so that the garbage collector is not to walk through it again
until another is opened. And what a request has used of memory the next one uses: given back to the system it would come
again page by page, each cleared, which takes longer than many a layer of a model.
"""

from __future__ import annotations

import gc
import multiprocessing
import socket
from pathlib import Path

import faiss
import torch

from pipeline import freed
from pipeline.config import Serve
from pipeline.serving.buffer import Buffer
from pipeline.serving.engine import Engine
from pipeline.serving.logs import log_as_json
from pipeline.serving.worker import Worker

KEPT, LARGEST = 1 << 29, 1 << 25
COLLECTED = 20_000, 20, 20


def work(bundles: Path, buffer: Path, settings: Serve, connection: socket.socket) -> None:
    """Answer from bundles of a folder until the socket is closed."""

    def opened(name: str, trusted: bool) -> Engine:
        gc.unfreeze()
        engine = Engine(bundles / name, settings, trusted=trusted)
        gc.collect()
        gc.freeze()
        return engine

    if multiprocessing.parent_process():
        log_as_json()
    gc.set_threshold(*COLLECTED)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    freed.keep(KEPT, largest=LARGEST)
    Worker(connection, Buffer(buffer), settings, opened).run()
