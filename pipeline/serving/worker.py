"""A worker: engines of the bundles that are wanted, and the thread that asks and tells them.

Over a socket come messages, a line of JSON each, and are done in their order, so that what is heard counts with what is
asked later:

    open bundle trusted      → what can be asked of it; it is opened in a thread beside
    close bundle
    hear first events        events that are in the buffer, numbered from `first`
    withdraw items
    answer questions         → bodies, or errors in their place
    explain bundle request   → what became of it; why bundle request item

A message with a number, `call`, gets a message back with that number, and `told` or `error`. Every engine hears each
event later than its log's end once, in the order of the numbers: those of before it was opened from the buffer.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import orjson
from cachetools import LRUCache

from pipeline.config import Serve
from pipeline.lake import InputError
from pipeline.serving.buffer import Buffer, Happened
from pipeline.serving.engine import Answer, Engine, Question, Trace

SUGGESTED = 100
REPLAYED = 1_000
RECOUNT_SECONDS = 1.0
RECOUNT_SHARE = 0.1
AT_ONCE = 1 << 20

log = logging.getLogger("recfunnel.serving")


class Live:
    """An engine, and the number of the last event it has heard."""

    def __init__(self, engine: Engine, given: Sequence[Mapping[str, Any]]) -> None:
        for changed in given:
            engine.parameters(changed)
        self.engine = engine
        self.facts = {
            **{"bundle": engine.name, "end": engine.end, "domains": engine.domains, "tasks": engine.tasks},
            **{"durations": engine.durations, "contexts": engine.contexts, "users": engine.users(SUGGESTED)},
        }
        self.heard = 0

    def catch_up(self, buffer: Buffer) -> None:
        """Hear what it has not yet heard of the buffer's events, and what was withdrawn."""
        self.engine.withdraw(buffer.withdrawn())
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


class Worker:
    """`run` does what is said over the connection until the other end closes it.

    `open_engine` opens a bundle by its name; one that another worker has checked, or does at that time, is trusted.
    """

    def __init__(
        self,
        connection: socket.socket,
        buffer: Buffer,
        settings: Serve,
        open_engine: Callable[[str, bool], Engine],
    ) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._buffer, self._open_engine = buffer, open_engine
        self._given = [arm.parameters for layer in settings.layers for arm in layer.arms]
        self._traces: LRUCache[str, Trace] = LRUCache(settings.traces)
        self._lives: dict[str, Live] = {}
        self._opening: dict[str, object] = {}
        self._opened: deque[tuple[object, Live]] = deque()
        self._stale = False
        self._due = 0.0

    def run(self) -> None:
        with self._connection:
            for message in self._messages():
                if message is not None:
                    self._take_in()
                    self._do(message)
                self._recount()
        for live in self._lives.values():
            live.engine.close()
        self._buffer.close()

    def _messages(self) -> Iterator[dict[str, Any] | None]:
        """What is said; None where nothing was for a while and there is something to be counted."""
        readable, rest = select.poll(), b""
        readable.register(self._connection, select.POLLIN)
        while True:
            if self._stale and not readable.poll(1e3 * RECOUNT_SECONDS):
                yield None
                continue
            chunk = b""
            with suppress(ConnectionError):
                chunk = self._connection.recv(AT_ONCE)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(orjson.loads, lines)

    def _do(self, message: Mapping[str, Any]) -> None:
        match message["do"]:
            case "answer":
                self._tell(message["call"], self._answered(message["questions"]))
            case "hear":
                self._hear(message["first"], [Happened(*one) for one in message["events"]])
            case "withdraw":
                for live in self._lives.values():
                    live.engine.withdraw(message["items"])
            case "open":
                self._open(message["call"], message["bundle"], message["trusted"])
            case "close":
                self._close(message["bundle"])
            case "explain" | "why":
                self._explain(message)

    def _tell(self, call: int, told: Any, error: Exception | None = None) -> None:
        answer = {"call": call, "told": told} if error is None else {"call": call, "error": _error(error)}
        line = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        with self._sending, suppress(OSError):  # where nobody listens any more, the next read says so
            self._connection.sendall(line)

    def _open(self, call: int, name: str, trusted: bool) -> None:
        mark = self._opening[name] = object()

        def opened() -> None:
            try:
                live = Live(self._open_engine(name, trusted), self._given)
                live.catch_up(self._buffer)
                live.engine.recount()
            except Exception as error:
                if not isinstance(error, InputError):
                    log.exception("%s cannot be opened", name)
                self._tell(call, None, error)
            else:
                self._opened.append((mark, live))
                self._tell(call, live.facts)

        threading.Thread(target=opened, name="opening", daemon=True).start()

    def _take_in(self) -> None:
        """Let engines that were opened beside hear what has happened meanwhile, and have them."""
        while self._opened:
            mark, live = self._opened.popleft()
            if self._opening.get(live.engine.name) is not mark:
                live.engine.close()
                continue
            del self._opening[live.engine.name]
            self._lives[live.engine.name] = live
            self._stale = True
            try:
                live.catch_up(self._buffer)
            except Exception:
                log.exception("what happened could not be recorded; it is in the buffer")

    def _close(self, name: str) -> None:
        self._opening.pop(name, None)
        if live := self._lives.pop(name, None):
            live.engine.close()

    def _hear(self, first: int, events: Sequence[Happened]) -> None:
        self._stale = True
        for live in self._lives.values():
            try:
                live.hear(first, events)
            except Exception:
                log.exception("what happened could not be recorded; it is in the buffer")

    def _recount(self) -> None:
        """Let the engines count anew what they have heard, soon after, but for a tenth of the time at most."""
        begun = time.monotonic()
        if not self._stale or begun < self._due:
            return
        self._stale = False
        for live in self._lives.values():
            try:
                live.engine.recount()
            except Exception:
                log.exception("%s could not count anew", live.engine.name)
        self._due = time.monotonic() + max(RECOUNT_SECONDS, (time.monotonic() - begun) / RECOUNT_SHARE)

    def _answered(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What each question comes to, those of a bundle answered together."""
        told: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(one["bundle"] for one in asked):
            engine = self._lives[name].engine
            questions = [_question(engine, one) for one in asked if one["bundle"] == name]
            for question, answer in zip(questions, _answers(engine, questions), strict=True):
                if isinstance(answer, Exception):
                    told[question.request] = {"error": _error(answer)}
                    continue
                self._traces[question.request] = answer.trace
                left = None if answer.left is None else b64encode(answer.left.tobytes()).decode()
                told[question.request] = {"body": answer.body, "left": left}
        return [told[one["request"]] for one in asked]

    def _explain(self, message: Mapping[str, Any]) -> None:
        try:
            engine, trace = self._lives[message["bundle"]].engine, self._traces[message["request"]]
            told = engine.why(trace, message["item"]) if message["do"] == "why" else engine.explain(trace)
        except Exception as error:
            log.exception("request %s could not be explained", message["request"])
            self._tell(message["call"], None, error)
        else:
            self._tell(message["call"], told)


def _question(engine: Engine, asked: Mapping[str, Any]) -> Question:
    return Question(
        **{name: asked[name] for name in ("request", "user", "domain", "time", "k", "context", "arms")},
        parameters=engine.parameters(asked["changed"]),
        left={
            domain: (moment, np.frombuffer(b64decode(items), np.int32))
            for domain, (moment, items) in asked["left"].items()
        },
    )


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


def _error(error: Exception) -> dict[str, Any]:
    """An error as the other end is told it; `input` where the input was wrong."""
    wrong = isinstance(error, InputError)
    return {"input": wrong, "message": str(error) if wrong else f"{type(error).__name__}: {error}"}
