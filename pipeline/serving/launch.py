"""The service put together: a folder of bundles, the buffer beside it, the workers, and the address."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline import config
from pipeline.config import Serve
from pipeline.serving import registry
from pipeline.serving.starting import in_process, in_thread, prepare

BUFFER = "live"


def collect(folder: Path, alias: str) -> Path | None:
    """Write what the service was told since the last time as a Parquet file of the event contract, for the next
    training; None where there is nothing new. Raises `InputError` where the alias names no bundle."""
    from pipeline.features.store import BUILT_IN_CONTEXT, DAY
    from pipeline.serving.buffer import Buffer

    bundles = folder / registry.FOLDER
    settings = registry.read_config(bundles / registry.current(bundles, alias))
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
    with tempfile.TemporaryDirectory(prefix="recfunnel-serve-") as place:
        if only is not None:
            bundles, named = only.resolve().parent, Path(place) / f"{alias}.json"
            named.write_text(json.dumps({"bundle": only.resolve().name, "previous": []}))
        else:
            bundles = folder / registry.FOLDER
            named = bundles / f"{alias}.json"
        first = registry.current(bundles, alias) if only is None else only.resolve().name
        settings = config.changed(registry.read_config(bundles / first).serve, changed)

        start = in_thread
        if settings.processes > 1:
            prepare("pipeline.serving.work")  # which takes seconds, beside the imports that follow
            start = in_process
        from pipeline.serving import app
        from pipeline.serving.buffer import Buffer
        from pipeline.serving.logs import log_as_json
        from pipeline.serving.service import Service

        log_as_json()
        work = partial(_work, bundles, folder / BUFFER, settings)
        service = Service(settings, Buffer(folder / BUFFER), named, partial(start, work))
        app.serve(app.make(service, settings), host=host, port=port, told=told)


def _work(bundles: Path, buffer: Path, settings: Serve, connection: socket.socket) -> None:
    """`pipeline.serving.work`, which a process that has workers for it does not import."""
    from pipeline.serving.work import work

    work(bundles, buffer, settings, connection)
