"""The service: engines, the buffer of feedback, and the threads between them and the requests.

    requests ──► queue ──► funnel thread: engine.answer, a batch of what waits ──► answers
    feedback ──► writer thread: one commit for all that waits ──► queue ──► funnel thread: engine.record

One thread asks the engines and tells them, so that an event which was acknowledged counts with the next request. It is
acknowledged when it is on the disk. Every engine hears each event later than its log's end once, in the order in which
they came, whether it was in service at the time or opened later: an engine knows the number it has heard up to.

Which bundle is in service an alias file says. When it names another, that one is opened and brought up to date in a
thread beside; the funnel thread changes over between two batches, and no request notices.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from cachetools import LRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from pipeline.config import Serve
from pipeline.experiments import layers
from pipeline.lake import InputError
from pipeline.serving.buffer import Buffer, Received, Response
from pipeline.serving.engine import Answer, Engine, Happened, Question, Trace
from pipeline.serving.messages import Ask, Event
from pipeline.sources.contract import DAY, EARLIEST

SECOND = 1_000_000
MOST_AHEAD = 60 * SECOND
SUGGESTED = 100
REPLAYED = 1_000
MOST_UNLOGGED = 10_000
FLUSH_SECONDS = 1.0
FORGET_SECONDS = 60.0
RECOUNT_SECONDS = 1.0
GRACE_SECONDS = 10.0
RECOUNT_SHARE = 0.1
BUCKETS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)

T = TypeVar("T")

log = logging.getLogger("recfunnel.serving")


class RefusedError(InputError):
    """What a client asked or told cannot be; `field` names where."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class OverloadedError(Exception):
    """More requests wait than may."""


class NotReadyError(Exception):
    """No engine is in service, or the service is ending."""


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
        self.unlogged = Counter("recfunnel_unlogged", "Answers that were not logged for want of room.", registry=one)


class Live:
    """An engine, and the number of the last event it has heard."""

    def __init__(self, engine: Engine, given: Sequence[Mapping[str, Any]]) -> None:
        for changed in given:
            engine.parameters(changed)
        self.engine = engine
        self.users = engine.users(SUGGESTED)
        self.heard = 0

    def catch_up(self, buffer: Buffer) -> None:
        """Hear what it has not yet heard of the buffer's events."""
        last = buffer.last()
        missed = buffer.since(self.engine.end, after=self.heard)
        while chunk := list(islice(missed, REPLAYED)):
            self.engine.record([event for _, event in chunk])
            self.heard = chunk[-1][0]
        self.heard = max(self.heard, last)

    def hear(self, first: int, events: Sequence[Happened]) -> None:
        """Hear those of successive events, numbered from `first`, that it has not heard yet."""
        fresh = [
            event for number, event in enumerate(events, first) if number > self.heard and event.time > self.engine.end
        ]
        if fresh:
            self.engine.record(fresh)
        self.heard = max(self.heard, first + len(events) - 1)


@dataclass(frozen=True)
class _Asked:
    """A request that waits for the funnel thread."""

    request: str
    ask: Ask
    arms: Mapping[str, str]
    future: asyncio.Future[dict[str, Any]]


@dataclass(frozen=True)
class _Call:
    """Something else that the funnel thread is to do; `of_client` if a client waits for it."""

    function: Callable[[], Any]
    future: asyncio.Future[Any] | None = None
    of_client: bool = False


@dataclass(frozen=True)
class _Told:
    """Events, or items to withdraw, that wait for the writer thread."""

    events: Sequence[Received]
    items: Sequence[str]
    future: asyncio.Future[int]


Result = tuple[asyncio.Future[Any] | None, Any]
Job = _Asked | _Call


class Service:
    """Answers requests from the bundle that the file `alias` names, which `open_engine` opens by its name.

    The coroutines are called from one event loop. `start` returns at once; `ready` tells whether an engine is there.
    """

    def __init__(
        self,
        settings: Serve,
        buffer: Buffer,
        alias: Path,
        open_engine: Callable[[str], Engine],
        *,
        poll_seconds: float = 1.0,
    ) -> None:
        layers.check(settings.layers)
        self.settings = settings
        self.buffer = buffer
        self.clock = Clock(settings.clock)
        self.clock.reach(buffer.last_time() + 1)
        self.metrics = Metrics()
        self.serving: Live | None = None
        self.beside: Live | None = None
        self.refused: tuple[str, str] | None = None
        self._alias, self._open_engine, self._poll_seconds = alias, open_engine, poll_seconds
        self._given = [arm.parameters for layer in settings.layers for arm in layer.arms]
        self._traces: LRUCache[str, tuple[str, Trace]] = LRUCache(settings.traces)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._put = self._taken = 0
        self._told: queue.SimpleQueue[_Told | None] = queue.SimpleQueue()
        self._unlogged: deque[Response] = deque()
        self._ending = self._stale = False
        self._due = 0.0
        self._threads = [
            threading.Thread(target=self._funnel, name="funnel", daemon=True),
            threading.Thread(target=self._writer, name="writer", daemon=True),
        ]
        self.metrics.waiting.set_function(lambda: self.waiting)
        self.metrics.kept.set_function(lambda: len(buffer))
        self.metrics.bytes.set_function(lambda: buffer.bytes)

    @property
    def ready(self) -> bool:
        return self.serving is not None and not self._ending

    @property
    def waiting(self) -> int:
        """How many requests wait for the funnel thread."""
        return self._put - self._taken

    @property
    def _lives(self) -> list[Live]:
        return [live for live in (self.serving, self.beside) if live is not None]

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Answer what waits and write what was told, then end."""
        self._ending = True
        self._watching.cancel()
        funnel, writer = self._threads
        self._jobs.put(None)
        await asyncio.to_thread(funnel.join, GRACE_SECONDS)
        await asyncio.sleep(0)
        self._told.put(None)
        await asyncio.to_thread(writer.join, GRACE_SECONDS)
        await asyncio.sleep(0)
        self.buffer.close()
        for live in self._lives:
            live.engine.close()

    def recommend(self, ask: Ask, request: str) -> asyncio.Future[dict[str, Any]]:
        """The answer's body, to be awaited. If it is cancelled before its turn comes, nothing is done for it.

        Raises `RefusedError` (when awaited), `OverloadedError` and `NotReadyError`.
        """
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._queue(_Asked(request, ask, layers.assign(self.settings.layers, ask.user), future))
        return future

    async def explain(self, request: str) -> dict[str, Any]:
        """What became of the request. Raises `ForgottenError`, `OverloadedError` and `NotReadyError`."""
        name, trace = self._trace(request)
        return await self._client(lambda: self._engine(name, request).explain(trace))

    async def why(self, request: str, item: str) -> dict[str, Any]:
        """What became of an item in the request. Raises as `explain` does."""
        name, trace = self._trace(request)
        return await self._client(lambda: self._engine(name, request).why(trace, item))

    async def feedback(self, events: Sequence[Event]) -> int:
        """Keep events, all or none, and let them count; returns how many. When this returns they are on the disk.

        An event without a time happened now, as does one that is ahead by up to a minute. Raises `RefusedError` for an
        unknown domain or label, a task that is neither 0 nor 1, and a time that cannot be; also `BufferFullError`,
        `OverloadedError` and `NotReadyError`.
        """
        engine, now = self._in_service().engine, self.clock.now()
        received = [_received(event, f"events.{place}", engine, now) for place, event in enumerate(events)]
        return await self._tell(received, [])

    async def withdraw(self, items: Sequence[str]) -> int:
        """Never show these items again; returns how many. Raises as `feedback` does."""
        self._in_service()
        return await self._tell([], items)

    def about(self) -> dict[str, Any]:
        """The bundle in service and what can be asked of it. Raises `NotReadyError`."""
        live = self._in_service()
        engine = live.engine
        return {
            "bundle": engine.name,
            "beside": self.beside.engine.name if self.beside else None,
            "domains": list(engine.domains),
            "tasks": list(engine.tasks),
            "durations": list(engine.durations),
            "contexts": list(engine.contexts),
            "users": live.users,
            "time": datetime.fromtimestamp(self.clock.now() / SECOND, UTC).isoformat(timespec="seconds"),
        }

    def _in_service(self) -> Live:
        if self._ending:
            raise NotReadyError("the service is ending")
        if self.serving is None:
            why = f"; {self.refused[0]} was refused: {self.refused[1]}" if self.refused else ""
            raise NotReadyError(f"no bundle is in service yet{why}")
        return self.serving

    def _queue(self, job: Job) -> None:
        self._in_service()
        if self.waiting >= self.settings.queue:
            raise OverloadedError(f"{self.waiting} requests wait already; ask again in a moment")
        self._put += 1
        self._jobs.put(job)

    async def _client(self, function: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue(_Call(function, future, of_client=True))
        return await future

    async def _tell(self, events: Sequence[Received], items: Sequence[str]) -> int:
        if self._told.qsize() >= self.settings.queue:
            raise OverloadedError("too much feedback waits to be written; send it again in a moment")
        future: asyncio.Future[int] = self._loop.create_future()
        self._told.put(_Told(events, items, future))
        return await asyncio.shield(future)

    def _trace(self, request: str) -> tuple[str, Trace]:
        try:
            return self._traces[request]
        except KeyError:
            raise ForgottenError(
                f"request {request!r} is unknown; the last {self.settings.traces} answers are remembered"
            ) from None

    def _engine(self, name: str, request: str) -> Engine:
        for live in self._lives:
            if live.engine.name == name:
                return live.engine
        raise ForgottenError(f"request {request!r} was answered by {name}, which is no longer in service")

    def _deliver(self, results: Sequence[Result]) -> None:
        """Give results, or the errors in their place, to those who wait for them."""
        for future, result in results:
            if future is None or future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            elif isinstance(result, Answer):
                self._remember(result)
                future.set_result(result.body)
            else:
                future.set_result(result)

    def _remember(self, answer: Answer) -> None:
        body, question = answer.body, answer.trace.question
        self._traces[question.request] = body["bundle"], answer.trace
        for stage, milliseconds in body["ms"].items():
            self.metrics.stages.labels(stage).observe(milliseconds / 1e3)
        for stage in body["degraded"]:
            self.metrics.degraded.labels(stage).inc()
        if len(self._unlogged) == MOST_UNLOGGED:
            self.metrics.unlogged.inc()
            return
        self._unlogged.append(
            Response(
                request=question.request,
                time=question.time,
                user=question.user,
                domain=question.domain,
                bundle=body["bundle"],
                arms=question.arms,
                items=[one["item"] for one in body["items"]],
                degraded=body["degraded"],
            )
        )

    def _funnel(self) -> None:
        """The funnel thread: does the jobs in turn, requests that follow each other together."""
        for jobs in self._turns():
            for _, same in groupby(jobs, type):
                alike = list(same)
                asked = [job for job in alike if isinstance(job, _Asked)]
                calls = [self._call(job) for job in alike if isinstance(job, _Call)]
                self._loop.call_soon_threadsafe(self._deliver, self._answer(asked) + calls)
            self._recount()

    def _turns(self) -> Iterator[list[Job]]:
        """What waits, at most `together` at a time; nothing where nothing came for a while."""
        while True:
            jobs: list[Job | None] = []
            try:
                jobs.append(self._jobs.get(timeout=RECOUNT_SECONDS if self._stale else None))
                while len(jobs) < self.settings.together and jobs[-1] is not None:
                    jobs.append(self._jobs.get_nowait())
            except queue.Empty:
                pass
            turn = [job for job in jobs if job is not None]
            self._taken += sum(isinstance(job, _Asked) or job.of_client for job in turn)
            yield turn
            if None in jobs:
                return

    def _recount(self) -> None:
        """Let the engines count anew what they have heard, soon after, but for a tenth of the time at most."""
        begun = time.monotonic()
        if not self._stale or begun < self._due:
            return
        self._stale = False
        for live in self._lives:
            try:
                live.engine.recount()
            except Exception:
                log.exception("%s could not count anew", live.engine.name)
        self._due = time.monotonic() + max(RECOUNT_SECONDS, (time.monotonic() - begun) / RECOUNT_SHARE)

    def _call(self, job: _Call) -> Result:
        try:
            return job.future, job.function()
        except Exception as error:
            if job.future is None:
                log.exception("what happened could not be recorded; it is in the buffer")
            return job.future, error

    def _answer(self, asked: list[_Asked]) -> list[Result]:
        """Answers, or errors in their place, each with its future; nothing for clients that are gone."""
        results: list[Result] = []
        questions: dict[str, list[tuple[Question, asyncio.Future[Any]]]] = {}
        engines = {}
        for one in asked:
            if one.future.cancelled():
                continue
            try:
                engine, question = self._question(one)
            except Exception as error:
                results.append((one.future, error))
            else:
                engines[engine.name] = engine
                questions.setdefault(engine.name, []).append((question, one.future))
        for name, pairs in questions.items():
            self.metrics.together.observe(len(pairs))
            answers = _answers(engines[name], [question for question, _ in pairs])
            results += [(future, answer) for (_, future), answer in zip(pairs, answers, strict=True)]
        return results

    def _question(self, asked: _Asked) -> tuple[Engine, Question]:
        """The engine that is to answer, and what it is asked."""
        ask, live = asked.ask, self.serving
        if live is None:
            raise NotReadyError("no bundle is in service")
        changed = layers.parameters(self.settings.layers, asked.arms)
        parameters = live.engine.parameters(changed)
        if ask.beside and self.beside is None:
            raise RefusedError("no bundle stands beside the one in service", "beside")
        if self.beside and (ask.beside or parameters.beside):
            live = self.beside
            parameters = live.engine.parameters(changed)
        engine = live.engine
        _require(ask.domain, engine.domains, "domain", "domain")
        return engine, Question(
            request=asked.request,
            user=ask.user,
            domain=ask.domain,
            time=self.clock.now(),
            k=ask.k,
            parameters=parameters,
            context=ask.context,
            arms=asked.arms,
        )

    def _hear(self, first: int, events: Sequence[Happened]) -> None:
        self._stale = True
        for live in self._lives:
            live.hear(first, events)

    def _withdraw(self, items: Sequence[str]) -> None:
        for live in self._lives:
            live.engine.withdraw(items)

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
                self._loop.call_soon_threadsafe(self._deliver, self._commit(some))
            if time.monotonic() >= flush or None in told:
                self._flush()
                flush = time.monotonic() + FLUSH_SECONDS
            if time.monotonic() >= forget and self.serving:
                self._forget()
                forget = time.monotonic() + FORGET_SECONDS

    def _commit(self, told: Sequence[_Told]) -> list[Result]:
        """Events at once and items at once; each client gets its number, or the error in its place."""
        results: list[Result] = []
        for write, some in (
            (self._append, [one for one in told if one.events]),
            (self._withdraw_for_good, [one for one in told if one.items]),
        ):
            try:
                if some:
                    write(some)
                results += [(one.future, len(one.events) + len(one.items)) for one in some]
            except Exception as error:
                results += [(one.future, error) for one in some]
        return results

    def _append(self, told: Sequence[_Told]) -> None:
        events = [event for one in told for event in one.events]
        first = self.buffer.append(events) - len(events) + 1
        happened = [event.happened for event in events]
        self._jobs.put(_Call(lambda: self._hear(first, happened)))
        self.metrics.events.inc(len(events))

    def _withdraw_for_good(self, told: Sequence[_Told]) -> None:
        items = [item for one in told for item in one.items]
        self.buffer.withdraw(items)
        self._jobs.put(_Call(lambda: self._withdraw(items)))

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
            live = await self._opened(name)
        except Exception as error:
            self._refuse(name, error)
            return
        beside: Live | None = None
        if self.settings.beside and before:
            try:
                beside = await self._opened(before[0])
            except Exception as error:
                log.error("%s cannot stand beside: %s", before[0], error)
        self.refused = None
        if live is not self.serving or beside is not self.beside:
            self.metrics.swaps.inc(live is not self.serving)
            done: asyncio.Future[None] = self._loop.create_future()
            self._jobs.put(_Call(lambda: self._change_over(live, beside), done))
            await done
        self._tell_bundles()
        log.info("in service", extra={"bundle": name, "beside": beside.engine.name if beside else None})

    def _refuse(self, name: str, error: Exception) -> None:
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        self.refused = name, why
        self.metrics.refusals.inc()
        self._tell_bundles()
        log.error("refused", extra={"bundle": name, "why": why}, exc_info=not isinstance(error, InputError))

    def _tell_bundles(self) -> None:
        named = (("serving", self.serving), ("beside", self.beside))
        self.metrics.bundles.clear()
        for state, live in named:
            if live:
                self.metrics.bundles.labels(live.engine.name, state).set(1)
        if self.refused:
            self.metrics.bundles.labels(self.refused[0], "refused").set(1)

    async def _opened(self, name: str) -> Live:
        for live in self._lives:
            if live.engine.name == name:
                return live
        return await asyncio.to_thread(self._open, name)

    def _open(self, name: str) -> Live:
        """An engine that has heard what happened up to now."""
        live = Live(self._open_engine(name), self._given)
        live.engine.withdraw(self.buffer.withdrawn())
        live.catch_up(self.buffer)
        live.engine.recount()
        return live

    def _change_over(self, live: Live, beside: Live | None) -> None:
        """On the funnel thread: let new engines hear the rest, and take them into service."""
        before, after = self._lives, [one for one in (live, beside) if one is not None]
        for one in after:
            if one not in before:
                one.engine.withdraw(self.buffer.withdrawn())
                one.catch_up(self.buffer)
        self.clock.reach(live.engine.end + 1)
        self.serving, self.beside = live, beside
        self._stale = True
        for one in before:
            if one not in after:
                one.engine.close()


def _answers(engine: Engine, questions: list[Question]) -> list[Answer | Exception]:
    """Answers, or errors in their place: a question that cannot be answered is asked alone and spoils no other."""
    try:
        return [*engine.answer(questions)]
    except Exception as error:
        if len(questions) == 1:
            if not isinstance(error, InputError):
                log.exception("request %s failed", questions[0].request)
            return [error]
        return [one for question in questions for one in _answers(engine, [question])]


def _received(event: Event, place: str, engine: Engine, now: int) -> Received:
    _require(event.domain, engine.domains, "domain", f"{place}.domain")
    for name, value in event.labels.items():
        _require(name, (*engine.tasks, *engine.durations), "label", f"{place}.labels")
        if name in engine.tasks and value not in (0, 1):
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
