"""The service: what clients ask and tell, the buffer of feedback, and the workers whose engines answer.

    requests ──► pool ──► a free worker: engine.answer, several of what waits ──► answers
    feedback ──► writer thread: one commit for all that waits ──► every worker: engine.record ──► acknowledged

An event is acknowledged when it is on the disk and on its way to every worker, each of which does in turn what comes:
it counts with the next request, whoever answers that. What belongs to all is here, once: numbers of events, clock,
metrics, which answer can be explained by whom, and what was ranked high for a user and not shown.

Which bundle is in service an alias file says. When it names another, every worker opens that one and brings it up to
date in a thread beside; when all have it, requests go to it, and none notices.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from cachetools import LRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from pipeline.config import Serve
from pipeline.experiments import layers
from pipeline.lake import InputError
from pipeline.serving.buffer import Buffer, Happened, Received, Response
from pipeline.serving.messages import Ask, Event
from pipeline.serving.pool import Asked, Facts, FailedError, NotReadyError, Pool, Worker, as_line
from pipeline.serving.starting import Started
from pipeline.sources.contract import DAY, EARLIEST

SECOND = 1_000_000
MOST_AHEAD = 60 * SECOND
MOST_UNLOGGED = 10_000
FLUSH_SECONDS = 1.0
FORGET_SECONDS = 60.0
GRACE_SECONDS = 10.0
BUCKETS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)

log = logging.getLogger("recfunnel.serving")


class RefusedError(InputError):
    """What a client asked or told cannot be; `field` names where."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class OverloadedError(Exception):
    """More requests wait than may."""


class ForgottenError(Exception):
    """A request that was never answered here, or so long ago that it was forgotten."""


class Clock:
    """What is now, in µs since 1970: by the wall, or as if the log had ended when the service began."""

    def __init__(self, kind: Literal["wall", "log"]) -> None:
        self.kind = kind
        self._begun = time.monotonic_ns()
        self._from = 0

    def now(self) -> int:
        if self.kind == "wall":
            return time.time_ns() // 1_000
        return self._from + (time.monotonic_ns() - self._begun) // 1_000

    def reach(self, moment: int) -> None:
        """Let it be at least `moment` by the log's clock; the wall's does as it does."""
        self._from += max(0, moment - self.now())


class Metrics:
    """What the service counts, for Prometheus."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        ProcessCollector(registry=one)
        self.requests = Counter("recfunnel_requests", "Requests by path and status.", ["path", "status"], registry=one)
        self.seconds = Histogram(
            "recfunnel_request_seconds", "Time to answer, by path.", ["path"], registry=one, buckets=BUCKETS
        )
        self.stages = Histogram(
            "recfunnel_stage_seconds", "Time in a stage of the funnel.", ["stage"], registry=one, buckets=BUCKETS
        )
        self.degraded = Counter("recfunnel_degraded", "Answers without a stage.", ["stage"], registry=one)
        self.together = Histogram(
            "recfunnel_together", "Requests answered at once.", registry=one, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.waiting = Gauge("recfunnel_waiting", "Requests that wait.", registry=one)
        self.bundles = Gauge(
            "recfunnel_bundle", "Bundles: in service, beside it or refused.", ["bundle", "state"], registry=one
        )
        self.swaps = Counter("recfunnel_swaps", "How often a bundle was taken into service.", registry=one)
        self.refusals = Counter("recfunnel_refusals", "How often a bundle was refused.", registry=one)
        self.events = Counter("recfunnel_events", "Events acknowledged.", registry=one)
        self.kept = Gauge("recfunnel_buffer_events", "Events in the buffer.", registry=one)
        self.bytes = Gauge("recfunnel_buffer_bytes", "Size of the buffer on the disk.", registry=one)
        self.workers = Gauge("recfunnel_workers", "Workers in service.", registry=one)
        self.deaths = Counter("recfunnel_worker_deaths", "Workers that ended and were started anew.", registry=one)
        self.resident = Gauge(
            "recfunnel_resident_bytes", "Memory of all processes; pages they share count in each.", registry=one
        )
        self.unlogged = Counter("recfunnel_unlogged", "Answers that were not logged for want of room.", registry=one)


@dataclass(frozen=True)
class _Told:
    """Events, or items to withdraw, that wait for the writer thread."""

    events: Sequence[Received]
    items: Sequence[str]
    future: asyncio.Future[int]


Result = tuple[asyncio.Future[int], int | Exception]


class Service:
    """Answers requests from the bundle that the file `alias` names, by `settings.processes` workers that `start_worker`
    starts.

    The coroutines are called from one event loop. `start` returns before a bundle is in service; `ready` tells of that.
    """

    def __init__(
        self,
        settings: Serve,
        buffer: Buffer,
        alias: Path,
        start_worker: Callable[[], Started],
        *,
        poll_seconds: float = 1.0,
    ) -> None:
        layers.check(settings.layers)
        self.settings = settings
        self.buffer = buffer
        self.clock = Clock(settings.clock)
        self.clock.reach(buffer.last_time() + 1)
        self.metrics = Metrics()
        self.pool = Pool(
            settings.processes,
            start_worker,
            together=settings.together,
            question=self._question,
            answered=self._answered,
            batched=self.metrics.together.observe,
            ended=self.metrics.deaths.inc,
        )
        self.serving: Facts | None = None
        self.beside: Facts | None = None
        self.refused: tuple[str, str] | None = None
        self._alias, self._poll_seconds = alias, poll_seconds
        self._answers: LRUCache[str, tuple[str, Worker]] = LRUCache(settings.traces)
        self._left: dict[str, LRUCache[str, dict[str, tuple[int, str]]]] = {}
        self._explaining = 0
        self._told: queue.SimpleQueue[_Told | None] = queue.SimpleQueue()
        self._unlogged: deque[Response] = deque()
        self._ending = False
        self._writing = threading.Thread(target=self._writer, name="writer", daemon=True)
        self.metrics.waiting.set_function(lambda: self.waiting)
        self.metrics.kept.set_function(lambda: len(buffer))
        self.metrics.bytes.set_function(lambda: buffer.bytes)
        self.metrics.workers.set_function(lambda: len(self.pool.serving))
        self.metrics.resident.set_function(lambda: sum(_resident(process) for process in self.pool.processes))

    @property
    def ready(self) -> bool:
        return bool(self.pool.serving) and not self._ending

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker, and to be explained."""
        return len(self.pool.waiting) + self._explaining

    @property
    def _served(self) -> list[str]:
        return [one.bundle for one in (self.serving, self.beside) if one is not None]

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._writing.start()
        await self.pool.start()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Answer what waits and write what was told, then end."""
        self._ending = True
        self._watching.cancel()
        await self.pool.close()
        self._told.put(None)
        await asyncio.to_thread(self._writing.join, GRACE_SECONDS)
        await asyncio.sleep(0)
        self.buffer.close()

    def recommend(self, ask: Ask, request: str) -> asyncio.Future[dict[str, Any]]:
        """The answer's body, to be awaited. If it is cancelled before its turn comes, nothing is done for it.

        Raises `RefusedError` and `FailedError` (when awaited), `OverloadedError` and `NotReadyError`.
        """
        self._admit()
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.pool.ask(Asked(request, ask, layers.assign(self.settings.layers, ask.user), future))
        return future

    async def explain(self, request: str) -> dict[str, Any]:
        """What became of the request. Raises `ForgottenError`, `FailedError`, `OverloadedError` and `NotReadyError`."""
        return await self._explained("explain", request)

    async def why(self, request: str, item: str) -> dict[str, Any]:
        """What became of an item in the request. Raises as `explain` does."""
        return await self._explained("why", request, item=item)

    async def feedback(self, events: Sequence[Event]) -> int:
        """Keep events, all or none, and let them count; returns how many. When this returns they are on the disk.

        An event without a time happened now, as does one that is ahead by up to a minute. Raises `RefusedError` for an
        unknown domain or label, a task that is neither 0 nor 1, and a time that cannot be; also `BufferFullError`,
        `OverloadedError` and `NotReadyError`.
        """
        facts, now = self._in_service(), self.clock.now()
        received = [_received(event, f"events.{place}", facts, now) for place, event in enumerate(events)]
        return await self._tell(received, [])

    async def withdraw(self, items: Sequence[str]) -> int:
        """Never show these items again; returns how many. Raises as `feedback` does."""
        self._in_service()
        return await self._tell([], items)

    def about(self) -> dict[str, Any]:
        """The bundle in service and what can be asked of it. Raises `NotReadyError`."""
        facts = self._in_service()
        return {
            "bundle": facts.bundle,
            "beside": self.beside.bundle if self.beside else None,
            **{name: getattr(facts, name) for name in ("domains", "tasks", "durations", "contexts", "users")},
            "time": datetime.fromtimestamp(self.clock.now() / SECOND, UTC).isoformat(timespec="seconds"),
        }

    def _in_service(self) -> Facts:
        if self._ending:
            raise NotReadyError("the service is ending")
        if self.serving is None:
            why = f"; {self.refused[0]} was refused: {self.refused[1]}" if self.refused else ""
            raise NotReadyError(f"no bundle is in service yet{why}")
        return self.serving

    def _admit(self) -> None:
        self._in_service()
        if self.waiting >= self.settings.queue:
            raise OverloadedError(f"{self.waiting} requests wait already; ask again in a moment")

    async def _explained(self, do: str, request: str, **rest: str) -> dict[str, Any]:
        if request not in self._answers:
            raise ForgottenError(
                f"request {request!r} is unknown; the last {self.settings.traces} answers are remembered"
            )
        name, worker = self._answers[request]
        if name not in self._served:
            raise ForgottenError(f"request {request!r} was answered by {name}, which is no longer in service")
        if worker not in self.pool.workers:
            raise ForgottenError(f"request {request!r} was answered by a worker that has ended")
        self._admit()
        self._explaining += 1
        try:
            told: dict[str, Any] = await worker.call(do, bundle=name, request=request, **rest)
        finally:
            self._explaining -= 1
        return told

    async def _tell(self, events: Sequence[Received], items: Sequence[str]) -> int:
        if self._told.qsize() >= self.settings.queue:
            raise OverloadedError("too much feedback waits to be written; send it again in a moment")
        future: asyncio.Future[int] = self._loop.create_future()
        self._told.put(_Told(events, items, future))
        return await asyncio.shield(future)

    def _question(self, asked: Asked) -> dict[str, Any]:
        """What a worker is asked, of the bundle that is to answer. Raises `RefusedError`."""
        ask, facts = asked.ask, self.serving
        assert facts is not None
        changed = layers.parameters(self.settings.layers, asked.arms)
        if ask.beside and self.beside is None:
            raise RefusedError("no bundle stands beside the one in service", "beside")
        if self.beside and (ask.beside or changed.get("beside")):
            facts = self.beside
        _require(ask.domain, facts.domains, "domain", "domain")
        return {
            **{"bundle": facts.bundle, "request": asked.request, "user": ask.user, "domain": ask.domain, "k": ask.k},
            **{"context": ask.context, "arms": asked.arms, "changed": changed, "time": self.clock.now()},
            "left": self._left[facts.bundle].get(ask.user, {}),
        }

    def _answered(self, question: Mapping[str, Any], told: Mapping[str, Any], worker: Worker) -> dict[str, Any]:
        """The body of an answer, of which what is needed later is remembered."""
        body: dict[str, Any] = {**told["body"], "worker": worker.number}
        request, user, domain, bundle, moment = (
            question[name] for name in ("request", "user", "domain", "bundle", "time")
        )
        self._answers[request] = bundle, worker
        if told["left"] is not None and (left := self._left.get(bundle)) is not None:
            left[user] = {**left.get(user, {}), domain: (moment, told["left"])}
        for stage, milliseconds in body["ms"].items():
            self.metrics.stages.labels(stage).observe(milliseconds / 1e3)
        for stage in body["degraded"]:
            self.metrics.degraded.labels(stage).inc()
        if len(self._unlogged) == MOST_UNLOGGED:
            self.metrics.unlogged.inc()
            return body
        items = [one["item"] for one in body["items"]]
        self._unlogged.append(
            Response(request, moment, user, domain, bundle, question["arms"], items, body["degraded"])
        )
        return body

    def _writer(self) -> None:
        """The writer thread: commits all that waits at once, and what was answered now and then."""
        flush = forget = 0.0
        told: list[_Told | None] = []
        while None not in told:
            told = []
            try:
                told.append(self._told.get(timeout=FLUSH_SECONDS))
                while told[-1] is not None:
                    told.append(self._told.get_nowait())
            except queue.Empty:
                pass
            if some := [one for one in told if one is not None]:
                self._loop.call_soon_threadsafe(self._deliver, *self._commit(some))
            if time.monotonic() >= flush or None in told:
                self._flush()
                flush = time.monotonic() + FLUSH_SECONDS
            if time.monotonic() >= forget and self.serving:
                self._forget()
                forget = time.monotonic() + FORGET_SECONDS

    def _commit(self, told: Sequence[_Told]) -> tuple[list[bytes], list[Result]]:
        """Write events at once and items at once; returns what workers are to be told of that, and for each client the
        number, or the error in its place."""
        lines: list[bytes] = []
        results: list[Result] = []
        for write, some in (
            (self._append, [one for one in told if one.events]),
            (self._withdraw_for_good, [one for one in told if one.items]),
        ):
            try:
                if some:
                    lines.append(as_line(write(some)))
                results += [(one.future, len(one.events) + len(one.items)) for one in some]
            except Exception as error:
                results += [(one.future, error) for one in some]
        return lines, results

    def _append(self, told: Sequence[_Told]) -> dict[str, Any]:
        events = [event for one in told for event in one.events]
        first = self.buffer.append(events) - len(events) + 1
        self.metrics.events.inc(len(events))
        return {"do": "hear", "first": first, "events": [astuple(event.happened) for event in events]}

    def _withdraw_for_good(self, told: Sequence[_Told]) -> dict[str, Any]:
        items = [item for one in told for item in one.items]
        self.buffer.withdraw(items)
        return {"do": "withdraw", "items": items}

    def _deliver(self, lines: Sequence[bytes], results: Sequence[Result]) -> None:
        """Tell the workers, and then give results, or the errors in their place, to those who wait for them."""
        for line in lines:
            self.pool.tell(line)
        for future, result in results:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _flush(self) -> None:
        responses = [self._unlogged.popleft() for _ in range(len(self._unlogged))]
        try:
            if responses:
                self.buffer.log(responses)
        except Exception as error:
            log.error("answers could not be logged: %s", error)
            self.metrics.unlogged.inc(len(responses))

    def _forget(self) -> None:
        try:
            self.buffer.forget(self.clock.now() - round(self.settings.keep_days * DAY))
        except Exception as error:
            log.error("nothing could be forgotten: %s", error)

    async def _watch(self) -> None:
        """Follow the alias, for ever."""
        followed: bytes | None = None
        while True:
            with suppress(OSError):
                alias = self._alias.read_bytes()
                if alias != followed:
                    followed = alias
                    await self._follow(alias)
            await asyncio.sleep(self._poll_seconds)

    async def _follow(self, alias: bytes) -> None:
        """Take the bundle that the alias names into service, and the one before it beside, if that is wanted.

        One that is refused leaves all as it is, and is not tried again before the alias changes.
        """
        name = self._alias.name
        try:
            told = orjson.loads(alias)
            name, before = told["bundle"], told.get("previous", [])
            facts = await self._opened(name)
        except Exception as error:
            self._refuse(name, error)
            return
        beside: Facts | None = None
        if self.settings.beside and before:
            try:
                beside = await self._opened(before[0], name)
            except Exception as error:
                log.error("%s cannot stand beside: %s", before[0], error)
        self.refused = None
        self._change_over(facts, beside)
        self._tell_bundles()
        log.info("in service", extra={"bundle": name, "beside": beside.bundle if beside else None})

    async def _opened(self, name: str, *others: str) -> Facts:
        """What can be asked of a bundle that all workers in service have now, besides `others` and what is served."""
        self.pool.want([name, *others, *self._served], self._served)
        try:
            facts = await self.pool.checked(name)
        except Exception:
            self.pool.want([*others, *self._served], self._served)
            raise
        await self.pool.everywhere(name)
        return facts

    def _change_over(self, facts: Facts, beside: Facts | None) -> None:
        before = self.serving.bundle if self.serving else None
        self.metrics.swaps.inc(facts.bundle != before)
        self.clock.reach(facts.end + 1)
        self.serving, self.beside = facts, beside
        self._left = {name: self._left.get(name, LRUCache(self.settings.live_users)) for name in self._served}
        self.pool.want(self._served, self._served)

    def _refuse(self, name: str, error: Exception) -> None:
        why = str(error) if isinstance(error, InputError | FailedError) else f"{type(error).__name__}: {error}"
        self.refused = name, why
        self.metrics.refusals.inc()
        self._tell_bundles()
        log.error("refused", extra={"bundle": name, "why": why})

    def _tell_bundles(self) -> None:
        named = (("serving", self.serving), ("beside", self.beside))
        self.metrics.bundles.clear()
        for state, facts in named:
            if facts:
                self.metrics.bundles.labels(facts.bundle, state).set(1)
        if self.refused:
            self.metrics.bundles.labels(self.refused[0], "refused").set(1)


def _received(event: Event, place: str, facts: Facts, now: int) -> Received:
    _require(event.domain, facts.domains, "domain", f"{place}.domain")
    for name, value in event.labels.items():
        _require(name, (*facts.tasks, *facts.durations), "label", f"{place}.labels")
        if name in facts.tasks and value not in (0, 1):
            raise RefusedError(f"{name} happened (1) or did not (0), not {value:g}", f"{place}.labels")
    moment = now if event.time is None else _microseconds(event.time)
    if moment > now + MOST_AHEAD:
        clock = datetime.fromtimestamp(now / SECOND, UTC).isoformat(timespec="seconds")
        raise RefusedError(f"in the future; here it is {clock}", f"{place}.time")
    if moment < _microseconds(EARLIEST):
        raise RefusedError("before 1990", f"{place}.time")
    happened = Happened(event.user, event.item, event.domain, min(moment, now), event.shown, event.labels)
    return Received(happened, event.context, event.request)


def _require(value: str, known: Sequence[str], what: str, field: str) -> None:
    if value not in known:
        raise RefusedError(f"{what} {value!r} is unknown; there are {', '.join(known)}", field)


def _microseconds(moment: datetime) -> int:
    """µs since 1970 of a time; one without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (whole.days * 86_400 + whole.seconds) * SECOND + whole.microseconds


def _resident(process: int) -> int:
    """Bytes of a process that are in memory; 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
