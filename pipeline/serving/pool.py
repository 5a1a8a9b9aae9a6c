"""The pool of workers: gives requests to those that are free, several at once, and tells all of them what happens.

One that ends, or is stuck and so is ended, is started anew, and what it was asked goes to another, once. A bundle is
checked by the first worker that opens it, and trusted by the others. All of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson

from pipeline.lake import InputError
from pipeline.serving.messages import Ask
from pipeline.serving.starting import Started

STEADY_SECONDS = 60.0
STUCK_SECONDS = 30.0
LONGEST_PAUSE = 30.0
END_SECONDS = 10.0

log = logging.getLogger("recfunnel.serving")


class FailedError(Exception):
    """A worker could not do what it was asked, by a fault of the service's own."""


class NotReadyError(Exception):
    """No engine is in service, or the service is ending."""


@dataclass(frozen=True)
class Facts:
    """What can be asked of a bundle; `end` is its log's (µs), `users` some that have a history."""

    bundle: str
    end: int
    domains: list[str]
    tasks: list[str]
    durations: list[str]
    contexts: list[str]
    users: list[str]


@dataclass(eq=False)
class Asked:
    """A request that waits for a worker, or for its answer; `again` when a worker ended over it."""

    request: str
    ask: Ask
    arms: Mapping[str, str]
    future: asyncio.Future[dict[str, Any]]
    again: bool = False


class Worker(asyncio.Protocol):
    """A worker, seen from here: the bundles that it has opened, what it is busy with, and since when it is not."""

    def __init__(
        self, number: int, started: Started, begun: Callable[[Worker], None], ended: Callable[[Worker], None]
    ) -> None:
        self.number, self.process, self.end = number, started.process, started.end
        self.since = self.free_since = time.monotonic()
        self.opened: set[str] = set()
        self.opening: dict[str, asyncio.Future[Any]] = {}
        self.busy: list[tuple[Asked, dict[str, Any]]] = []
        self._begun, self._ended = begun, ended
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._called = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._begun(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = orjson.loads(line)
            future = self._calls.pop(message["call"])
            if future.done():
                continue
            if error := message.get("error"):
                future.set_exception(failure(error))
            else:
                future.set_result(message["told"])

    def connection_lost(self, _: Exception | None) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(FailedError("the process that was to do it has ended"))
        self._ended(self)

    def tell(self, line: bytes) -> None:
        self._transport.write(line)

    def call(self, do: str, **rest: Any) -> asyncio.Future[Any]:
        """What the worker answers. Raises `InputError` or `FailedError` when awaited."""
        self._called += 1
        future = self._calls[self._called] = asyncio.get_running_loop().create_future()
        self.tell(as_line({"do": do, "call": self._called, **rest}))
        return future

    def close(self) -> None:
        self._transport.close()


class Pool:
    """`size` workers, each made by `start`. `question` makes of a request what a worker is asked, or raises why not;
    `answered` is told of it what it came to and by which worker, and returns the answer. `batched` is told how many are
    asked at once, and `ended` of a worker that has ended.

    `wanted` are the bundles that the workers are to have, and `served` those of them that requests are asked of.
    """

    def __init__(
        self,
        size: int,
        start: Callable[[], Started],
        *,
        together: int,
        question: Callable[[Asked], dict[str, Any]],
        answered: Callable[[Mapping[str, Any], Mapping[str, Any], Worker], dict[str, Any]],
        batched: Callable[[int], None],
        ended: Callable[[], None],
    ) -> None:
        self.size = size
        self.waiting: deque[Asked] = deque()
        self.wanted: Sequence[str] = ()
        self.served: Sequence[str] = ()
        self.workers: list[Worker] = []
        self._start, self._together = start, together
        self._question, self._answered = question, answered
        self._batched, self._ended = batched, ended
        self._checks: dict[str, asyncio.Future[Facts]] = {}
        self._checking: set[str] = set()
        self._pauses = [0.0] * size
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = self._due = False

    @property
    def processes(self) -> set[int]:
        """The process that this is, and those of the workers."""
        return {os.getpid(), *(one.process for one in self.workers)}

    @property
    def serving(self) -> list[Worker]:
        """The workers that can be asked: they have all that is served."""
        return [one for one in self.workers if self.served and one.opened.issuperset(self.served)]

    async def start(self) -> None:
        for number in range(self.size):
            await self._begin(number)

    async def close(self) -> None:
        """Answer what waits, for so long, and end the workers."""
        self._ending = True
        until = time.monotonic() + END_SECONDS
        while (self.waiting or any(one.busy for one in self.workers)) and time.monotonic() < until:
            await self._until_moved(until - time.monotonic())
        self._refuse_waiting("the service is ending")
        for task in self._tasks:
            task.cancel()
        ended = [asyncio.to_thread(one.end, END_SECONDS) for one in self.workers]
        for one in self.workers:
            one.close()
        await asyncio.gather(*ended)

    def ask(self, asked: Asked) -> None:
        self.waiting.append(asked)
        self._soon()

    def tell(self, line: bytes) -> None:
        """Tell all workers, before all that they are asked later."""
        for one in self.workers:
            one.tell(line)

    def want(self, wanted: Sequence[str], served: Sequence[str]) -> None:
        """Let every worker have these bundles, and no others; requests go to workers that have the `served` ones."""
        self.wanted, self.served = wanted, served
        for name in self._checks.keys() - set(wanted):
            del self._checks[name]
            self._checking.discard(name)
        for name in set(wanted) - self._checks.keys():
            self._checks[name] = asyncio.get_running_loop().create_future()
            self._checks[name].add_done_callback(lambda done: done.cancelled() or done.exception())
        for one in self.workers:
            self._equip(one)
        self._soon()

    async def checked(self, name: str) -> Facts:
        """What can be asked of a wanted bundle, when a worker has checked it. Raises why it is refused."""
        return await asyncio.shield(self._checks[name])

    async def everywhere(self, name: str) -> None:
        """Wait until every worker that serves has a bundle that one has checked."""
        while any(name not in one.opened for one in self.serving):
            await self._until_moved(None)

    async def _until_moved(self, seconds: float | None) -> None:
        self._moved.clear()
        try:
            await asyncio.wait_for(self._moved.wait(), seconds)
        except TimeoutError:
            return

    async def _begin(self, number: int) -> None:
        started = await asyncio.to_thread(self._start)
        worker = Worker(number, started, self._begun, self._lost)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=started.connection)

    def _begun(self, worker: Worker) -> None:
        self.workers.append(worker)
        self._equip(worker)

    def _equip(self, worker: Worker) -> None:
        """Let a worker open what it lacks of what is wanted, and close the rest."""
        for name in {*worker.opened, *worker.opening}.difference(self.wanted):
            worker.opened.discard(name)
            worker.opening.pop(name, None)
            worker.tell(as_line({"do": "close", "bundle": name}))
        for name in set(self.wanted).difference(worker.opened, worker.opening):
            trusted = name in self._checking
            self._checking.add(name)
            call = worker.opening[name] = worker.call("open", bundle=name, trusted=trusted)
            self._do(self._opened(worker, name, call, self._checks[name], trusted))

    async def _opened(
        self, worker: Worker, name: str, call: asyncio.Future[Any], check: asyncio.Future[Facts], trusted: bool
    ) -> None:
        """Take note that a worker has opened a bundle; if it has checked it, of what that came to, and if it could not
        open one that another finds good, end it."""
        try:
            facts = Facts(**await call)
        except (InputError, FailedError) as error:
            if not trusted:
                check.set_exception(error)
                return
            await asyncio.wait([check])
            if not check.exception() and worker.opening.get(name) is call and worker in self.workers:
                log.error("worker %d cannot open %s, which another has checked: %s", worker.number, name, error)
                worker.close()
            return
        if not trusted:
            check.set_result(facts)
        if worker.opening.get(name) is call:
            del worker.opening[name]
            worker.opened.add(name)
        self._soon()

    def _lost(self, worker: Worker) -> None:
        """Give to others what a worker was asked that has ended, and start it anew."""
        self.workers.remove(worker)
        over = [one for one, _ in worker.busy if not one.future.done()]
        for one in over:
            if one.again:
                one.future.set_exception(FailedError("two processes have ended over it"))
        self.waiting.extendleft(reversed([one for one in over if not one.again]))
        for one in over:
            one.again = True
        self._soon()
        if not self._ending:
            self._ended()
            log.error("worker %d has ended and is started anew", worker.number)
            self._do(self._again(worker))

    async def _again(self, worker: Worker) -> None:
        number = worker.number
        steady = time.monotonic() - worker.since > STEADY_SECONDS
        self._pauses[number] = 0.0 if steady else min(LONGEST_PAUSE, 2 * self._pauses[number] + 1)
        await asyncio.to_thread(worker.end, 0.0)
        while True:
            await asyncio.sleep(self._pauses[number])
            try:
                await self._begin(number)
            except OSError as error:
                log.error("worker %d cannot be started: %s", number, error)
                self._pauses[number] = LONGEST_PAUSE
            else:
                return

    def _do(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _soon(self) -> None:
        """Give out what waits when all that has come by now is there."""
        self._moved.set()
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._give_out)

    def _give_out(self) -> None:
        self._due = False
        if self.waiting and not self.serving:
            self._refuse_waiting("no worker is in service; ask again in a moment")
        free = deque(sorted((one for one in self.serving if not one.busy), key=lambda one: one.free_since))
        while free and self.waiting:
            size = min(self._together, -(-len(self.waiting) // len(free)))
            if batch := self._taken(size):
                worker = free.popleft()
                worker.busy = batch
                self._batched(len(batch))
                told = worker.call("answer", questions=[question for _, question in batch])
                stuck = asyncio.get_running_loop().call_later(STUCK_SECONDS, self._end_stuck, worker)
                told.add_done_callback(partial(self._end_batch, worker, stuck))

    def _end_stuck(self, worker: Worker) -> None:
        """End a process that is still at its requests."""
        if worker.process != os.getpid():
            log.error("worker %d has not answered for %.0f s", worker.number, STUCK_SECONDS)
            worker.close()

    def _taken(self, size: int) -> list[tuple[Asked, dict[str, Any]]]:
        """Up to so many of those that wait, with their questions; none whose client is gone."""
        batch: list[tuple[Asked, dict[str, Any]]] = []
        while self.waiting and len(batch) < size:
            asked = self.waiting.popleft()
            if asked.future.done():
                continue
            try:
                batch.append((asked, self._question(asked)))
            except Exception as error:
                asked.future.set_exception(error)
        return batch

    def _end_batch(
        self, worker: Worker, stuck: asyncio.TimerHandle, done: asyncio.Future[list[dict[str, Any]]]
    ) -> None:
        stuck.cancel()
        if done.exception() or worker not in self.workers:
            return
        for (asked, question), told in zip(worker.busy, done.result(), strict=True):
            if asked.future.done():
                continue
            if error := told.get("error"):
                asked.future.set_exception(failure(error))
            else:
                asked.future.set_result(self._answered(question, told, worker))
        worker.busy = []
        worker.free_since = time.monotonic()
        self._soon()

    def _refuse_waiting(self, why: str) -> None:
        while self.waiting:
            future = self.waiting.popleft().future
            if not future.done():
                future.set_exception(NotReadyError(why))


def failure(error: Mapping[str, Any]) -> InputError | FailedError:
    """What a worker told of an error, as one."""
    return InputError(error["message"]) if error["input"] else FailedError(error["message"])


def as_line(message: Mapping[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
