"""The service over HTTP: its paths, limits, log lines and metrics. What is behind them is `service`.

What a client sends never names a file. Errors are JSON, `{"error": …, "field": …}`, in plain words. A line of JSON is
logged for each request: what was asked for and how it went, never what a body held.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import orjson
import uvicorn
from cachetools import LRUCache
from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from limits import RateLimitItem, parse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.config import Serve
from pipeline.lake import InputError
from pipeline.serving.buffer import BufferFullError
from pipeline.serving.messages import Accepted, Ask, Feedback, Problem, Recommendation, Withdrawal
from pipeline.serving.pool import NotReadyError
from pipeline.serving.service import ForgottenError, OverloadedError, RefusedError, Service

KEY = "RECFUNNEL_API_KEY"
PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PROBES = ("/healthz", "/readyz")
OPEN = (*PROBES, "/", "/favicon.ico")
MOST_CLIENTS = 100_000
LONGEST_ECHO = 200
GONE_SECONDS = 0.05
GRACE_SECONDS = 10
SWITCH_SECONDS = 5e-4
GONE = 499
NOTED = ("bundle", "degraded", "worker")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
]
STATUSES = {RefusedError: 422, ForgottenError: 404, OverloadedError: 503, NotReadyError: 503, BufferFullError: 507}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The X-API-Key header is missing or wrong."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "The body, or a value in it, cannot be."},
    429: {"model": Problem, "description": "Too many requests of one client; see Retry-After."},
    500: {"model": Problem, "description": "A fault of the service's own; its log has more."},
    503: {"model": Problem, "description": "Overloaded, starting or ending; see Retry-After."},
}
FORGOTTEN: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "No such request, or one that was forgotten."}
}
FULL: dict[int | str, dict[str, Any]] = {507: {"model": Problem, "description": "The disk is full; nothing was kept."}}
ASKS = {
    "plain": {"value": {"user": "u17", "domain": "feed", "k": 20}},
    "with context": {"value": {"user": "u17", "domain": "feed", "context": {"device": "phone"}}},
}
EVENTS = {
    "an impression with a click": {
        "value": {"events": [{"user": "u17", "item": "i5", "domain": "feed", "labels": {"click": 1}}]}
    },
    "an engagement alone": {
        "value": {
            "events": [
                {
                    **{"user": "u17", "item": "i5", "domain": "feed", "shown": False, "labels": {"like": 1}},
                    "time": "2026-11-24T10:00:00Z",
                }
            ]
        }
    },
}

log = logging.getLogger("recfunnel.serving")


def make(service: Service, settings: Serve, *, page: Path = PAGE) -> FastAPI:
    """The application; it starts and ends the service. The API key, if there is to be one, is RECFUNNEL_API_KEY.

    Raises `InputError` for a rate that is none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="recfunnel",
        description="Recommendations, why they are what they are, and the feedback they learn from.",
        version=version("recfunnel"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_answers(app, service)
    _add_facts(app, service)
    _add_page(app, page)
    for error in STATUSES:
        app.add_exception_handler(error, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    rate = _rate(settings.rate)
    app.add_middleware(Guard, service=service, most=settings.body, rate=rate, key=os.environ.get(KEY, ""))
    return app


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, told: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are answered. `told` is called with the address.

    Raises `InputError` where the port cannot be had. FORWARDED_ALLOW_IPS in the environment names the proxies whose
    X-Forwarded-For says who a client is.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2_048)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port") from None
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    name = f"[{host}]" if family == socket.AF_INET6 else host
    told(f"http://{name}:{listener.getsockname()[1]}")
    with listener, _signals_taken():
        uvicorn.Server(config).run(sockets=[listener])


class Guard:
    """Stands before the application: key, rate and size of the body; a number, a log line and metrics for each request.

    The log line has what an endpoint puts into `scope["state"]` of what is `NOTED`.
    """

    def __init__(self, app: ASGIApp, service: Service, most: int, rate: RateLimitItem, key: str) -> None:
        self.app, self.service = app, service
        self.most, self.rate, self.key = most, rate, key.encode()
        self._paid: LRUCache[str, float] = LRUCache(MOST_CLIENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request"] = secrets.token_hex(8)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", state["request"].encode())]
            await send(message)

        try:
            headers = Headers(scope=scope)
            if refusal := self._refusal(scope, headers):
                await refusal(scope, receive, answer)
            else:
                await self.app(scope, self._limited(receive), answer)
        except Exception:
            log.exception("failed", extra={"request": state["request"], "path": scope["path"]})
            if not status:
                failed = problem(500, f"a fault of the service's own; its log tells more of request {state['request']}")
                await failed(scope, receive, answer)
        finally:
            self._note(scope, status or GONE, time.perf_counter() - begun)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        path = scope["path"]
        open_to_all = path in OPEN or path.startswith("/page/")
        given = headers.get("x-api-key", "").encode("latin-1")
        if self.key and not open_to_all and not hmac.compare_digest(given, self.key):
            return problem(401, "the header X-API-Key is missing or wrong")
        if path not in PROBES and (seconds := self._wait(scope["client"][0] if scope.get("client") else "")):
            return problem(429, f"more than {self.rate}; wait {seconds} s", retry=seconds)
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < LONGEST_ECHO and int(length) > self.most:
            return self._too_large()
        return None

    def _wait(self, client: str) -> int:
        """After how many seconds this client may ask; 0 for now.

        The generic cell rate algorithm (ITU-T I.371): a client pays a share of the rate's period for each request, and
        may have paid for one period ahead. It takes a number a client, of which the latest are kept.
        """
        period, now = self.rate.get_expiry(), time.monotonic()
        paid = max(now, self._paid.get(client, 0.0)) + period / self.rate.amount
        if paid > now + period + 1e-6:
            return math.ceil(paid - now - period)
        self._paid[client] = paid
        return 0

    def _too_large(self) -> Response:
        return problem(413, f"the body has more than {self.most} bytes", headers={"Connection": "close"})

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, which fails where a body becomes too large."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most:
                raise HTTPException(413)
            return message

        return limited

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = route.path_format if route is not None else "other"
        self.service.metrics.requests.labels(path, status).inc()
        self.service.metrics.seconds.labels(path).observe(seconds)
        state = scope["state"]
        told = {name: state[name] for name in NOTED if name in state}
        log.info(
            "request",
            extra={
                **{"request": state["request"], "path": scope["path"][:LONGEST_ECHO], "status": status},
                **{"ms": round(1e3 * seconds, 2), **told},
            },
        )


def problem(
    status: int,
    error: str,
    field: str | None = None,
    *,
    retry: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in plain words as a response; `retry`: after how many seconds to ask again."""
    told = {**(headers or {}), **({"Retry-After": str(retry)} if retry else {})}
    return _json({"error": _printable(error), "field": field and _printable(field)}, status, told)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers=headers, media_type="application/json")


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/recommend",
        summary="The best k items for a user",
        responses={**PROBLEMS, 200: {"model": Recommendation}},
    )
    async def recommend(ask: Annotated[Ask, Body(openapi_examples=ASKS)], request: Request) -> Response:
        body = await _unless_gone(request, service.recommend(ask, request.state.request))
        if body is None:
            return Response(status_code=GONE)
        for name in NOTED:
            setattr(request.state, name, body[name])
        return _json(body)

    @app.post(
        "/events",
        summary="What users did; it is on the disk when this answers, and counts with the next request",
        status_code=202,
        responses={**PROBLEMS, **FULL, 202: {"model": Accepted}},
    )
    async def events(feedback: Annotated[Feedback, Body(openapi_examples=EVENTS)]) -> Response:
        return _json({"accepted": await service.feedback(feedback.events)}, 202)

    @app.post(
        "/withdraw",
        summary="Items that may no longer be shown",
        responses={**PROBLEMS, **FULL, 200: {"model": Accepted}},
    )
    async def withdraw(withdrawal: Withdrawal) -> Response:
        return _json({"accepted": await service.withdraw(withdrawal.items)})

    @app.get("/explain/{request}", summary="What became of a request", responses={**PROBLEMS, **FORGOTTEN})
    async def explain(request: str) -> Response:
        return _json(await service.explain(request))

    @app.get(
        "/explain/{request}/{item:path}",
        summary="Why an item was shown in a request, or where it fell",
        responses={**PROBLEMS, **FORGOTTEN},
    )
    async def why(request: str, item: str) -> Response:
        return _json(await service.why(request, item))


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/about", summary="The bundle in service and what can be asked of it", responses=PROBLEMS)
    async def about() -> Response:
        return _json({**service.about(), "version": app.version})

    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> Response:
        return _json({"alive": True})

    @app.get("/readyz", summary="Whether a bundle is in service", responses={503: PROBLEMS[503]})
    async def readyz() -> Response:
        refused = service.refused and {"bundle": service.refused[0], "why": _printable(service.refused[1])}
        if service.serving is None or not service.ready:
            told = {"error": "no bundle is in service", "field": None, "ready": False, "refused": refused}
            return _json(told, 503, {"Retry-After": "1"})
        workers = len(service.pool.serving)
        return _json({"ready": True, "bundle": service.serving.bundle, "workers": workers, "refused": refused})

    @app.get("/metrics", summary="What Prometheus reads", responses={401: PROBLEMS[401], 429: PROBLEMS[429]})
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, folder: Path) -> None:
    """The page: files that are read now, and served by their names."""
    files = {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in KINDS}

    def file(name: str) -> Response:
        if name not in files:
            return problem(404, "there is no such page")
        return Response(files[name], media_type=KINDS[Path(name).suffix])

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return file(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)


async def _unless_gone(request: Request, future: asyncio.Future[dict[str, Any]]) -> dict[str, Any] | None:
    """What the future comes to; None, and the future is cancelled, where the client goes away while it waits."""
    done, _ = await asyncio.wait([future], timeout=GONE_SECONDS)
    if not done:
        gone = asyncio.ensure_future(_gone(request))
        either: list[asyncio.Future[Any]] = [future, gone]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not future.done():
            future.cancel()
            return None
    return future.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _told(_: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return problem(status, str(error), getattr(error, "field", None), retry=1 if status == 503 else None)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return problem(422, f"body: it is no JSON, from character {first['loc'][-1]} on", "body")
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    more = f", and {len(others)} more" if others else ""
    return problem(422, f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}{more}", field)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return problem(422, "body: it cannot be read as JSON", "body")
    if error.status_code == 413:
        return problem(413, "the body is too large", headers={"Connection": "close"})
    return problem(error.status_code, str(error.detail).lower(), headers=error.headers)


def _rate(text: str) -> RateLimitItem:
    with suppress(ValueError):
        rate = parse(text)
        if rate.amount > 0:
            return rate
    raise InputError(f'serve.rate: {text!r} is no rate; write "1000/second" or the like')


def _printable(text: str) -> str:
    """A text that may have been the client's, cut to a few lines and made valid UTF-8."""
    return text[: 5 * LONGEST_ECHO].encode("utf-8", "replace").decode()


@contextmanager
def _signals_taken() -> Any:
    """Let SIGTERM and SIGINT end the server and not the process: uvicorn raises them again when it is done."""
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
