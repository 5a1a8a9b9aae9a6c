"""What an engine does in threads of its own, each job up to a deadline: what is late is left behind, and what took its
place goes on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as Late
from typing import Any, TypeVar

from pipeline.recall.route import NOTHING, Found, Requests, Route, nothing

PATIENCE = 5

T = TypeVar("T")

log = logging.getLogger(__name__)


class Stage:
    """Runs a job at a time in a thread of its own. One that is late is left behind, and until it has ended the stage
    is not asked again."""

    def __init__(self, name: str, milliseconds: float) -> None:
        self.name = name
        self._seconds = milliseconds / 1e3
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._late: Future[Any] | None = None

    def run(self, job: Callable[[], T]) -> T | None:
        """What the job returns; None, and a warning, where it fails or is late."""
        return self.end(self.begin(job))

    def begin(self, job: Callable[[], T]) -> Future[T] | None:
        """Let the job run while other things are done; None if the stage is not to be asked."""
        if self._late and not self._late.done():
            return None
        self._late = None
        return self._pool.submit(job)

    def end(self, begun: Future[T] | None) -> T | None:
        """What a job returns that has begun, as `run` does."""
        if begun is None:
            return None
        try:
            return begun.result(self._seconds)
        except Late:
            self._late = begun
            log.warning("the stage %s took more than %.0f ms and is left out", self.name, 1e3 * self._seconds)
        except Exception:
            log.exception("the stage %s failed and is left out", self.name)
        return None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Routes:
    """Asks routes, `threads` at once, the one that took longest the last time first. One that takes long does not hold
    up the others: a further thread goes on with these; one that is late is left behind, and until it has ended it is
    not asked again."""

    def __init__(self, routes: Mapping[str, Route], threads: int, milliseconds: float) -> None:
        self._routes = routes
        self._threads = threads
        self._milliseconds = milliseconds
        self._pool = ThreadPoolExecutor(threads + len(routes), thread_name_prefix="route")
        self._busy: set[str] = set()
        self._took = dict.fromkeys(routes, 0.0)

    def ask(
        self, names: Sequence[str], requests: Requests, k: int
    ) -> tuple[dict[str, Found], dict[str, tuple[str, float]]]:
        """What these routes find, and how each went: "ok", "empty", "late" or "failed", and its milliseconds."""
        free = (route for route in names if route not in self._busy)
        waiting = deque(sorted(free, key=self._took.__getitem__, reverse=True))
        answered: dict[str, tuple[Found, str, float]] = {}

        def work() -> None:
            while waiting:
                try:
                    route = waiting.popleft()
                except IndexError:
                    return
                begun = time.perf_counter()
                self._busy.add(route)
                try:
                    found = self._routes[route].recall(requests, k)
                    state = "ok" if (found.items != NOTHING).any() else "empty"
                except Exception:
                    log.exception("the route %s failed and is left out", route)
                    found, state = nothing(len(requests)), "failed"
                finally:
                    self._busy.discard(route)
                self._took[route] = 1e3 * (time.perf_counter() - begun)
                answered[route] = (found, state, self._took[route])

        seconds = self._milliseconds / 1e3
        until = time.perf_counter() + seconds
        working = [self._pool.submit(work) for _ in range(self._threads)]
        while time.perf_counter() < until and wait(working, seconds / PATIENCE).not_done:
            if waiting:
                working.append(self._pool.submit(work))
        waiting.clear()
        late = (nothing(len(requests)), "late", self._milliseconds)
        ended = {route: answered.get(route, late) for route in names}
        return {route: one[0] for route, one in ended.items()}, {route: one[1:] for route, one in ended.items()}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
