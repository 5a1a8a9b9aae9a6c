"""The service put together: a folder of bundles, the buffer beside it, the threads' numbers, and the address.

What an engine has opened stays while it is in service, so that the garbage collector is not to walk through it again
until another is opened. And what a request has used of memory the next one uses: given back to the system it would come
again page by page, each cleared, which takes longer than many a layer of a model.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import torch

from pipeline import config, freed
from pipeline.config import Serve
from pipeline.features.store import BUILT_IN_CONTEXT, DAY
from pipeline.lake import InputError
from pipeline.serving import app, bundle
from pipeline.serving.buffer import Buffer
from pipeline.serving.engine import Engine
from pipeline.serving.service import Service
from pipeline.serving.starting import in_process, in_thread, prepare
from pipeline.serving.worker import Worker

BUFFER = "live"
KEPT, LARGEST = 1 << 29, 1 << 25
COLLECTED = 20_000, 20, 20


def collect(folder: Path, alias: str) -> Path | None:
    """Write what the service was told since the last time as a Parquet file of the event contract, for the next
    training; None where there is nothing new. Raises `InputError` where the alias names no bundle."""
    bundles = folder / bundle.FOLDER
    settings = bundle.read_config(bundles / _named(bundles, alias))
    contract, contexts = settings.contract, [one for one in settings.features.context if one not in BUILT_IN_CONTEXT]
    buffer = Buffer(folder / BUFFER)
    try:
        everything = buffer.last_time() + DAY
        return buffer.drain(everything, tasks=contract.tasks, durations=tuple(contract.durations), contexts=contexts)
    finally:
        buffer.close()


def run(
    folder: Path,
    alias: str,
    only: Path | None,
    changed: Sequence[str],
    *,
    host: str,
    port: int,
    told: Callable[[str], None] = print,
) -> None:
    """Serve the bundle that an alias of the data folder names, or `only` this one, until SIGTERM or SIGINT.

    `changed` are settings of `[serve]` that differ from the bundle's own. Routes are asked in threads of their own, so
    that a model has one. A bundle that is refused leaves the service up, where `/readyz` says why, until the alias
    names another. Raises `InputError` where there is no such bundle.
    """
    app.log_as_json()
    with tempfile.TemporaryDirectory(prefix="recfunnel-serve-") as place:
        if only is not None:
            bundles, named = only.resolve().parent, Path(place) / f"{alias}.json"
            named.write_text(json.dumps({"bundle": only.resolve().name, "previous": []}))
        else:
            bundles = folder / bundle.FOLDER
            named = bundles / f"{alias}.json"
        first = _named(bundles, alias) if only is None else only.resolve().name
        settings = config.changed(bundle.read_config(bundles / first).serve, changed)

        start = in_thread
        if settings.processes > 1:
            prepare(__name__)
            start = in_process
        work = partial(_work, bundles, folder / BUFFER, settings)
        service = Service(settings, Buffer(folder / BUFFER), named, partial(start, work))
        app.serve(app.make(service, settings), host=host, port=port, told=told)


def _work(bundles: Path, buffer: Path, settings: Serve, connection: socket.socket) -> None:
    """What a worker does, alone in its process or beside the service."""

    def opened(name: str, trusted: bool) -> Engine:
        gc.unfreeze()
        engine = Engine(bundles / name, settings, trusted=trusted)
        gc.collect()
        gc.freeze()
        return engine

    if multiprocessing.parent_process():
        app.log_as_json()
    gc.set_threshold(*COLLECTED)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    freed.keep(KEPT, largest=LARGEST)
    Worker(connection, Buffer(buffer), settings, opened).run()


def _named(bundles: Path, alias: str) -> str:
    """The bundle that an alias names. Raises `InputError` where there is none."""
    name = bundle.read_alias(bundles, alias).get("bundle")
    if name is None or not (bundles / name).is_dir():
        raise InputError(f"{bundles}/{alias}.json: names no bundle that is there; recfunnel bundle CONFIG makes one")
    return str(name)
