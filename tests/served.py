"""A small engine with the interface of `pipeline.serving.engine.Engine`, and a service that answers from it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.config import Serve
from pipeline.lake import InputError
from pipeline.serving.buffer import Buffer, Happened
from pipeline.serving.engine import Answer, Engine, Parameters, Question, Trace
from pipeline.serving.service import Service
from pipeline.serving.starting import Started, in_thread
from pipeline.serving.worker import Worker

END = 1_764_000_000_000_000
NOBODY = np.zeros(0, np.int64)
USUAL = Parameters(routes=("hot",), per_route=10, merged=10, quota=(), keep=10, final=10)


@dataclass(eq=False)
class Small:
    """Shows i0, i1, … with what a user was not shown before; it remembers all that it was asked and told, and the
    threads it was asked in. It waits for `gate`, takes `seconds` for an answer, and has none for the user "poison"."""

    name: str = "bundle-a"
    end: int = END
    domains: tuple[str, ...] = ("feed", "shop")
    seconds: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")
    durations: tuple[str, ...] = ("play",)
    contexts: tuple[str, ...] = ("device",)
    batches: list[list[Question]] = field(default_factory=list)
    heard: list[Happened] = field(default_factory=list)
    withdrawn: set[str] = field(default_factory=set)
    threads: set[str] = field(default_factory=set)
    recounts: int = 0
    closed: bool = False
    waits: bool = False
    left: tuple[int, ...] = ()
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "gate"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, gate=threading.Event())
        self.gate.set()

    @property
    def asked(self) -> list[str]:
        return [question.user for batch in self.batches for question in batch]

    def parameters(self, changed: Mapping[str, Any]) -> Parameters:
        if strange := set(changed) - {"keep", "beside"}:
            raise InputError(f"serve.layers: {min(strange)!r} is no parameter")
        return cast(Parameters, type(USUAL)(**{**vars(USUAL), **changed}))

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        assert not self.closed
        self.waits = True
        self.gate.wait(10)
        self.waits = False
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(questions))
        if any(question.user == "poison" for question in questions):
            raise ZeroDivisionError("poison")
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        heard = {event.item for event in self.heard if event.user == question.user and event.time < question.time}
        hidden = heard | self.withdrawn
        items = islice((item for item in map("i{}".format, count()) if item not in hidden), question.k)
        listed = [
            {"item": item, "rank": rank, "score": 1 / rank, "route": "hot", "scores": {"click": 0.5, "like": 0.1}}
            for rank, item in enumerate(items, 1)
        ]
        body = {
            **{"request": question.request, "bundle": self.name, "user": question.user, "domain": question.domain},
            **{"known_user": bool(heard), "time": "2025-11-24T16:00:00Z", "items": listed, "degraded": ["route:tag"]},
            **{"arms": dict(question.arms), "ms": {"routes": 1.0, "fine": 2.0, "total": 3.0}},
        }
        none: Any = None
        trace = Trace(
            **{"question": question, "user": 1, "domain": 0, "found": {}, "states": {}, "exposed": NOBODY},
            **{"merged": NOBODY, "giver": NOBODY, "coarse": none, "kept": NOBODY, "scores": none, "fused": none},
            **{"final": NOBODY, "degraded": [], "ms": {}},
        )
        return Answer(body, trace, np.array(self.left, np.int32) if self.left else None)

    def record(self, events: Sequence[Happened]) -> None:
        assert not self.closed
        self.heard += events

    def recount(self) -> None:
        self.recounts += 1

    def withdraw(self, items: Sequence[str]) -> None:
        self.withdrawn |= set(items)

    def explain(self, trace: Trace) -> dict[str, Any]:
        self.threads.add(threading.current_thread().name)
        return {"request": trace.question.request, "bundle": self.name, "stages": []}

    def why(self, trace: Trace, item: str) -> dict[str, Any]:
        self.threads.add(threading.current_thread().name)
        return {"item": item, "because": f"{trace.question.user} was not shown it"}

    def users(self, most: int) -> list[str]:
        return ["u1", "u2"][:most]

    def close(self) -> None:
        self.closed = True


def work(folder: Path, engines: Sequence[Small], seconds: float, settings: Serve, connection: socket.socket) -> None:
    """Be a worker that opens these by their names, which takes so long; there are no others. Names that were not
    trusted are added to the folder's checks.txt."""
    known = {engine.name: engine for engine in engines}

    def open_engine(name: str, trusted: bool) -> Engine:
        time.sleep(seconds)
        if not trusted:
            with (folder / "checks.txt").open("a") as checks:
                checks.write(f"{name}\n")
        if name not in known:
            raise InputError(f"{name}: features/users.parquet is not the file that was written")
        return cast(Engine, known[name])

    Worker(connection, Buffer(folder), settings, open_engine).run()


def promote(folder: Path, name: str, *previous: str) -> None:
    """Let the alias in a folder name a bundle."""
    temporary = folder / ".champion.json.tmp"
    temporary.write_text(json.dumps({"bundle": name, "previous": previous}))
    temporary.replace(folder / "champion.json")


def service_of(
    folder: Path,
    *engines: Small,
    settings: Serve | None = None,
    opening: float = 0.0,
    start: Callable[[Callable[[socket.socket], None]], Started] = in_thread,
) -> Service:
    """A service of these engines, with its buffer and the alias, which names the first, in a folder; `start` says how
    its workers start."""
    if engines and not (folder / "champion.json").exists():
        promote(folder, engines[0].name)
    served = settings or Serve()
    start_worker = partial(start, partial(work, folder, engines, opening, served))
    return Service(served, Buffer(folder), folder / "champion.json", start_worker, poll_seconds=0.01)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    """The service, started and ready; it is closed at the end."""
    await service.start()
    try:
        await until(lambda: service.ready)
        yield service
    finally:
        await service.close()


@contextmanager
def full_disk(buffer: Buffer, *, spare: int = 0) -> Iterator[None]:
    """Meanwhile the buffer's file cannot grow by more than `spare` pages."""
    with buffer._lock:
        pages = buffer._connection.execute("PRAGMA page_count").fetchone()[0]
        buffer._connection.execute(f"PRAGMA max_page_count = {pages + spare}")
    try:
        yield
    finally:
        with buffer._lock:
            buffer._connection.execute("PRAGMA max_page_count = 1000000")


async def until(condition: Callable[[], bool], seconds: float = 25.0) -> None:
    """Wait for a condition; it must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.002)


def metric(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)
