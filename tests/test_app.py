from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import parse
from prometheus_client.parser import text_string_to_metric_families
from served import Small, full_disk, promote, service_of, until

from pipeline.config import Serve
from pipeline.lake import InputError
from pipeline.serving.app import KEY, Guard, make, serve
from pipeline.serving.logs import log_as_json
from pipeline.serving.service import Service

ASK = {"user": "u1", "domain": "feed", "k": 3}
EVENT = {"user": "u1", "item": "i0", "domain": "feed", "labels": {"click": 1}}
STATUSES = {200, 202, 401, 404, 413, 422, 429, 500, 503, 507}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>recfunnel</title>")
    (folder / "app.js").write_text("export {}")
    (folder / "secret.txt").write_text("not served")
    return folder


@asynccontextmanager
async def client_of(service: Service, **rest: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's application, when it is ready."""
    app = make(service, service.settings, **rest)
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        await until(lambda: service.ready)
        yield client


def tell(story: Callable[[httpx.AsyncClient], Awaitable[None]], service: Service, **rest: Any) -> None:
    """Run a client's story with the service."""

    async def whole() -> None:
        async with client_of(service, **rest) as client:
            await story(client)

    asyncio.run(asyncio.wait_for(whole(), 30))


def problem(response: httpx.Response, status: int, field: str | None = None) -> str:
    """The error's words; it must be of this status and about this field."""
    told = response.json()
    assert (response.status_code, set(told), told["field"]) == (status, {"error", "field"}, field), response.text
    return str(told["error"])


def test_the_way_of_a_user(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/recommend", json={**ASK, "context": {"device": "phone", "row": 3}})
        body = answer.json()
        assert [one["item"] for one in body["items"]] == ["i0", "i1", "i2"]
        assert body["request"] == answer.headers["x-request-id"]
        told = await client.post("/events", json={"events": [{**EVENT, "request": body["request"]}]})
        assert (told.status_code, told.json()) == (202, {"accepted": 1})
        again = (await client.post("/recommend", json=ASK)).json()
        assert [one["item"] for one in again["items"]] == ["i1", "i2", "i3"]
        assert (await client.post("/withdraw", json={"items": ["i2"]})).json() == {"accepted": 1}
        last = (await client.post("/recommend", json=ASK)).json()
        assert [one["item"] for one in last["items"]] == ["i1", "i3", "i4"]
        assert (await client.get(f"/explain/{body['request']}")).json()["stages"] == []
        why = (await client.get(f"/explain/{body['request']}/a%2Fb%20ü")).json()
        assert why == {"item": "a/b ü", "because": "u1 was not shown it"}

    tell(story, service_of(tmp_path, Small()))


def test_errors_are_told_in_plain_words(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        async def said(path: str, body: Any, field: str, status: int = 422) -> str:
            return problem(await client.post(path, json=body), status, field)

        assert await said("/recommend", {**ASK, "domain": "attic"}, "domain") == (
            "domain: domain 'attic' is unknown; there are feed, shop"
        )
        assert await said("/recommend", {**ASK, "k": 201}, "k") == "k: input should be less than or equal to 200"
        assert await said("/recommend", {**ASK, "usr": 1, "kk": 2}, "usr") == (
            "usr: extra inputs are not permitted, and 1 more"
        )
        assert "beside" in await said("/recommend", {**ASK, "beside": True}, "beside")
        assert "should have at most 50 items" in await said(
            "/recommend", {**ASK, "context": {str(n): n for n in range(51)}}, "context"
        )
        assert "'clack' is unknown" in await said(
            "/events", {"events": [EVENT, {**EVENT, "labels": {"clack": 1}}]}, "events.1.labels"
        )
        assert "greater than or equal to 0" in await said(
            "/events", {"events": [{**EVENT, "labels": {"click": -1}}]}, "events.0.labels.click"
        )
        assert "at most 1000 items" in await said("/events", {"events": [EVENT] * 1_001}, "events")
        broken = await client.post("/recommend", content=b"{", headers={"Content-Type": "application/json"})
        assert problem(broken, 422, "body") == "body: it is no JSON, from character 1 on"
        assert "remembered" in problem(await client.get("/explain/none"), 404)
        assert problem(await client.get("/nowhere"), 404) == "not found"
        assert problem(await client.get("/recommend"), 405) == "method not allowed"

    tell(story, service_of(tmp_path, Small()))


def test_a_fault_is_told_without_its_innards_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        error = problem(await client.post("/recommend", json={**ASK, "user": "poison"}), 500)
        assert "poison" not in error
        assert (await client.post("/recommend", json=ASK)).status_code == 200

    tell(story, service_of(tmp_path, Small()))
    assert "ZeroDivisionError: poison" in caplog.text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["user", "item", "domain", "k", "context", "beside", "time", "shown", "labels", "request", "events", "items"]
)
odd_numbers = st.sampled_from([-1, 0, 1, 201, 2**63, 2**70, -(2**70), 1e308, 1e-320, float("nan"), float("inf")])
odd_texts = st.sampled_from(
    ["", "\ud800", "\0", "x" * 300, "../../etc/passwd", "<img src=x>", "2025-11-24T16:00:00Z", "9" * 5_000, "feed"]
)
odd = odd_numbers | odd_texts | anything


RIGHT = {"/recommend": ASK, "/events": {"events": [EVENT, EVENT]}, "/withdraw": {"items": ["i0"]}}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Paths, and bodies that are right or nearly so, or nothing of the kind."""
    path = draw(st.sampled_from(list(RIGHT)))
    body = json.loads(json.dumps(RIGHT[path]))
    for _ in range(draw(st.integers(0, 2))):
        events = body.get("events")
        events = [one for one in events if isinstance(one, dict)] if isinstance(events, list) else []
        inner = draw(st.sampled_from([body, *events]))
        inner[draw(st.sampled_from(list(inner)) | names | odd_texts)] = draw(odd | st.dictionaries(odd_texts, odd))
    raw = json.dumps(draw(st.sampled_from([body, body, body, [body]]) | odd)).encode()
    broken = draw(st.sampled_from([raw[:-1], raw + b"}", b"\xff" + raw, b"[" * 20_000, b"9" * 5_000, b""]))
    return path, draw(st.sampled_from([raw, raw, raw, broken]))


def test_no_body_is_a_fault_of_the_services_own(tmp_path: Path) -> None:
    """Whatever is sent, the answer is one that the description of the API names."""
    service = service_of(tmp_path, Small(), settings=Serve(rate="1000000/second"))

    async def story(client: httpx.AsyncClient) -> None:
        loop, described = asyncio.get_running_loop(), (await client.get("/openapi.json")).json()["paths"]
        statuses = set()

        async def send(path: str, body: bytes, kind: str) -> None:
            response = await client.post(path, content=body, headers={"Content-Type": kind})
            statuses.add(response.status_code)
            assert str(response.status_code) in described[path]["post"]["responses"]
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()) == {"error", "field"}

        @settings(max_examples=400, suppress_health_check=list(HealthCheck))
        @given(bodies(), st.sampled_from(["application/json"] * 4 + ["text/plain", "application/json; charset=utf-16"]))
        def check(sent: tuple[str, bytes], kind: str) -> None:
            asyncio.run_coroutine_threadsafe(send(*sent, kind), loop).result(10)

        await asyncio.to_thread(check)
        assert statuses == {200, 202, 422}

    tell(story, service)


def test_no_path_is_a_fault_of_the_services_own(tmp_path: Path, page: Path) -> None:
    (tmp_path / "secret.html").write_text("not served")
    paths = [
        *("/page/../secret.html", "/page/..%2fsecret.html", "/page/%2e%2e/secret.html", "/page/secret.txt"),
        *("/page//etc/passwd", "/page/index.html%00", "//etc/passwd", "/explain/..%2f..%2fetc", "/explain/%ff/%ff"),
        *("/docs", "/redoc", "/page/", "/explain/", "/page/%00"),
    ]

    async def story(client: httpx.AsyncClient) -> None:
        for path in paths:
            response = await client.get(httpx.URL("http://here", raw_path=path.encode()))
            assert problem(response, 404), path

    tell(story, service_of(tmp_path, Small()), page=page)


def test_the_page_and_its_headers(tmp_path: Path, page: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        index, script = await client.get("/"), await client.get("/page/app.js")
        assert (index.text, index.headers["content-type"]) == (
            "<!doctype html><title>recfunnel</title>",
            "text/html; charset=utf-8",
        )
        assert (script.text, script.headers["content-type"]) == ("export {}", "text/javascript; charset=utf-8")
        for response in (index, script, await client.post("/recommend", json=ASK), await client.get("/nowhere")):
            assert response.headers["content-security-policy"].startswith("default-src 'self';")
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"
        assert (await client.get("/favicon.ico")).status_code == 204

    tell(story, service_of(tmp_path, Small()), page=page)


def test_without_a_page_the_service_serves(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        assert problem(await client.get("/"), 404) == "there is no such page"

    tell(story, service_of(tmp_path, Small()), page=tmp_path / "none")


def test_whether_it_is_ready(tmp_path: Path) -> None:
    service = service_of(tmp_path, Small(), settings=Serve(beside=True))

    async def story(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).json() == {"alive": True}
        ready = await client.get("/readyz")
        told = {"ready": True, "bundle": "bundle-a", "workers": 1, "refused": None}
        assert (ready.status_code, ready.json()) == (200, told)
        promote(tmp_path, "bundle-x")
        await until(lambda: service.refused is not None)
        refused = (await client.get("/readyz")).json()
        assert (refused["bundle"], refused["refused"]["bundle"]) == ("bundle-a", "bundle-x")
        assert "users.parquet" in refused["refused"]["why"]
        about = (await client.get("/about")).json()
        assert (about["bundle"], about["beside"], about["domains"]) == ("bundle-a", None, ["feed", "shop"])
        service.serving = None
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        assert (ready.json()["ready"], ready.json()["error"]) == (False, "no bundle is in service")
        late = await client.post("/recommend", json=ASK)
        assert late.headers["retry-after"] == "1"
        assert "bundle-x was refused" in problem(late, 503)

    tell(story, service)


def test_the_description_of_the_api(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        told = (await client.get("/openapi.json")).json()
        assert set(told["paths"]) == {
            *("/recommend", "/events", "/withdraw", "/explain/{request}", "/explain/{request}/{item}"),
            *("/about", "/healthz", "/readyz", "/metrics"),
        }
        recommend = told["paths"]["/recommend"]["post"]
        for status in ("401", "413", "422", "429", "500", "503"):
            schema = recommend["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
        assert recommend["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("Recommendation")
        assert "507" in told["paths"]["/events"]["post"]["responses"]
        for path, method in (("/recommend", "post"), ("/events", "post")):
            examples = told["paths"][path][method]["requestBody"]["content"]["application/json"]["examples"]
            for example in examples.values():
                assert (await client.request(method, path, json=example["value"])).status_code in (200, 202, 422)
        assert "HTTPValidationError" not in told["components"]["schemas"]

    tell(story, service_of(tmp_path, Small()))


def test_metrics(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for body in (ASK, ASK, {**ASK, "k": 0}):
            await client.post("/recommend", json=body)
        await client.post("/events", json={"events": [EVENT, EVENT]})
        for path in ("/explain/a", "/explain/b", "/nowhere/1", "/nowhere/2"):
            await client.get(path)
        text = (await client.get("/metrics")).text
        found = {
            (one.name, *sorted(one.labels.values())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }
        assert found["recfunnel_requests_total", "/recommend", "200"] == 2
        assert found["recfunnel_requests_total", "/recommend", "422"] == 1
        assert found["recfunnel_requests_total", "/explain/{request}", "404"] == 2
        assert found["recfunnel_requests_total", "404", "other"] == 2
        assert found["recfunnel_request_seconds_count", "/recommend"] == 3
        assert found["recfunnel_stage_seconds_count", "fine"] == 2
        assert found["recfunnel_degraded_total", "route:tag"] == 2
        assert found["recfunnel_events_total",] == found["recfunnel_buffer_events",] == 2
        assert found["recfunnel_buffer_bytes",] > 4_096
        assert found["recfunnel_waiting",] == 0
        assert found["recfunnel_bundle", "bundle-a", "serving"] == 1
        assert found["process_resident_memory_bytes",] > 1e6

    tell(story, service_of(tmp_path, Small()))


def test_a_line_is_logged_for_each_request_and_no_body(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recfunnel.serving")

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/recommend", json={**ASK, "user": "a-secret"})
        await client.post("/recommend", json={**ASK, "user": "a-secret", "k": 0})

    tell(story, service_of(tmp_path, Small()))
    lines = [record for record in caplog.records if record.message == "request"]
    first, second = ({name: getattr(line, name, None) for name in LOGGED} for line in lines)
    assert first.pop("ms") > 0
    assert first.pop("request") != second.pop("request")
    assert first == {"path": "/recommend", "status": 200, "bundle": "bundle-a", "degraded": ["route:tag"]}
    assert second["status"] == 422
    assert "a-secret" not in caplog.text


LOGGED = ("request", "path", "status", "ms", "bundle", "degraded")


def test_who_asks_too_often_waits(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answers = [await client.get("/about") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert problem(answers[-1], 429).startswith("more than 5 per 1 hour; wait 7")
        assert 700 <= int(answers[-1].headers["retry-after"]) <= 720
        assert (await client.get("/readyz")).status_code == 200
        transport = httpx.ASGITransport(client._transport.app, client=("10.0.0.2", 1))  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as another:
            assert (await another.get("/about")).status_code == 200

    tell(story, service_of(tmp_path, Small(), settings=Serve(rate="5/hour")))


def guard(rate: str, **rest: Any) -> Guard:
    none: Any = None
    return Guard(none, none, most=1, rate=parse(rate), key="", **rest)


@given(
    st.integers(1, 9),
    st.sampled_from([1, 60]),
    st.lists(st.floats(0, 20) | st.just(0.0), min_size=1, max_size=60),
)
def test_a_client_never_gets_more_than_its_rate(amount: int, period: int, gaps: list[float]) -> None:
    """At most `amount` at once, and over any stretch no more than come anew in it; who waits as told is let in."""
    rate, now, passed = guard(f"{amount} per {period} second"), 1_000.0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        assert rate._wait("a") == 0
        assert [rate._wait("b") for _ in range(amount)] == [0] * amount
        assert 0 < rate._wait("b") <= math.ceil(period / amount)
        passed.append(now)
        for gap in gaps:
            now += gap
            if wait := rate._wait("a"):
                now += wait
                assert rate._wait("a") == 0
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            most = amount + (passed[last] - passed[first]) * amount / period
            assert last - first + 1 <= most + 1e-3


def test_clients_are_not_counted_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.app.MOST_CLIENTS", 3)
    rate = guard("1/hour")
    assert [rate._wait(client) for client in "abcd"] == [0] * 4
    assert len(rate._paid) == 3
    assert rate._wait("d") == 3_600


def test_a_key_if_there_is_one(tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "hush")

    async def story(client: httpx.AsyncClient) -> None:
        assert "X-API-Key" in problem(await client.post("/recommend", json=ASK), 401)
        for wrong in ("", "hus", "hush ", b"h\xfcsh"):
            assert problem(await client.get("/about", headers={"X-API-Key": wrong}), 401)
        assert (await client.get("/about", headers={"x-api-key": "hush"})).status_code == 200
        assert problem(await client.get("/metrics"), 401)
        for path in ("/healthz", "/readyz", "/", "/page/app.js"):
            assert (await client.get(path)).status_code == 200

    tell(story, service_of(tmp_path, Small()), page=page)


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        sent = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(1_000):
                sent += 100
                yield b" " * 100

        headers = {"Content-Type": "application/json"}
        told = await client.post("/recommend", content=b" " * 2_001, headers=headers)
        assert (problem(told, 413), told.headers["connection"]) == ("the body has more than 2000 bytes", "close")
        for length in (b"1" * 5_000, b"\xb2", b"-1", b"10"):
            lies = await client.post("/recommend", content=b" " * 2_001, headers={**headers, "Content-Length": length})
            assert problem(lies, 413)
        streamed = await client.post("/recommend", content=chunks(), headers=headers)
        assert problem(streamed, 413)
        assert sent <= 2_200
        fits = await client.post("/recommend", content=json.dumps(ASK).encode().ljust(2_000), headers=headers)
        assert fits.status_code == 200

    tell(story, service_of(tmp_path, Small(), settings=Serve(body=2_000)))


def test_overload_is_told_with_when_to_ask_again(tmp_path: Path) -> None:
    engine = Small()

    async def story(client: httpx.AsyncClient) -> None:
        engine.gate.clear()
        asked = [asyncio.create_task(client.post("/recommend", json=ASK)) for _ in range(20)]
        await asyncio.sleep(0.2)
        engine.gate.set()
        answers = await asyncio.gather(*asked)
        refused = [answer for answer in answers if answer.status_code == 503]
        assert 14 <= len(refused) <= 16
        assert all(answer.status_code in (200, 503) for answer in answers)
        assert problem(refused[0], 503).endswith("requests wait already; ask again in a moment")
        assert refused[0].headers["retry-after"] == "1"

    tell(story, service_of(tmp_path, engine, settings=Serve(queue=4, together=2)))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    service = service_of(tmp_path, Small())

    async def story(client: httpx.AsyncClient) -> None:
        with full_disk(service.buffer):
            response = await client.post("/events", json={"events": [{**EVENT, "item": "i" * 200}] * 900})
        assert "the disk is full" in problem(response, 507)
        assert (await client.post("/recommend", json=ASK)).status_code == 200

    tell(story, service)


def test_bundles_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    engines = [Small(f"bundle-{name}", seconds=0.001) for name in "abc"]
    service = service_of(tmp_path, *engines)

    async def story(client: httpx.AsyncClient) -> None:
        done = asyncio.Event()

        async def demand() -> list[tuple[int, str]]:
            answers = []
            while not done.is_set():
                answer = await client.post("/recommend", json=ASK)
                answers.append((answer.status_code, answer.json()["bundle"]))
            return answers

        askers = [asyncio.create_task(demand()) for _ in range(4)]
        for engine in (*engines[1:], engines[0]):
            await asyncio.sleep(0.05)
            engine.closed = False
            promote(tmp_path, engine.name)
            await until(lambda name=engine.name: service.about()["bundle"] == name)  # type: ignore[misc]
        done.set()
        answers = [answer for asker in askers for answer in await asker]
        assert {status for status, _ in answers} == {200}
        assert {bundle for _, bundle in answers} >= {"bundle-a", "bundle-b", "bundle-c"}

    tell(story, service)


HEAD = "POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The address of the service behind a real server, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make(service, service.settings), http="httptools", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def wait_until_ready(address: str) -> None:
    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(transport=transport) as client:
        for _ in range(1_000):
            if client.get(f"http://{address}/readyz").status_code == 200:
                return
    raise AssertionError("never ready")


def test_a_client_that_goes_away_is_not_answered(tmp_path: Path) -> None:
    engine = Small()
    service = service_of(tmp_path, engine)
    body = json.dumps({**ASK, "user": "gone"}).encode()
    head = f"{HEAD}Content-Length: {len(body)}\r\n\r\n"
    with listening(service) as address:
        wait_until_ready(address)
        engine.gate.clear()
        host, port = address.split(":")
        with ThreadPoolExecutor() as pool:
            first = pool.submit(httpx.post, f"http://{address}/recommend", json=ASK)
            asyncio.run(until(lambda: engine.waits))
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + body)
                asyncio.run(until(lambda: service.waiting == 1))
            second = pool.submit(httpx.post, f"http://{address}/recommend", json={**ASK, "user": "stays"})
            asyncio.run(until(lambda: count(service, "499") == 1))
            engine.gate.set()
            assert [one.result().status_code for one in (first, second)] == [200, 200]
    assert engine.asked == ["u1", "stays"]


def count(service: Service, status: str) -> float | None:
    labels = {"path": "/recommend", "status": status}
    return service.metrics.registry.get_sample_value("recfunnel_requests_total", labels)


def test_a_body_that_streams_in_without_end_is_cut_off(tmp_path: Path) -> None:
    service = service_of(tmp_path, Small(), settings=Serve(body=10_000))
    with listening(service) as address:
        wait_until_ready(address)
        host, port = address.split(":")
        head = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head + b"2711\r\n" + b" " * 10_001 + b"\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head)
            with pytest.raises(OSError, match=r"reset|pipe"):
                list(map(connection.sendall, [b"400\r\n" + b" " * 1_024 + b"\r\n"] * 10_000))
        assert (httpx.post(f"http://{address}/recommend", json=ASK)).status_code == 200


@pytest.fixture
def loggers() -> Iterator[None]:
    """What `log_as_json` does to loggers is undone."""
    told = [logging.getLogger(name) for name in ("recfunnel", "pipeline", "uvicorn")]
    before = [(one.handlers, one.propagate, one.level) for one in told]
    yield
    for one, (handlers, propagate, level) in zip(told, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_at_its_end_every_request_that_was_taken_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Small(seconds=0.01)
    service = service_of(tmp_path, engine)
    addresses: list[str] = []
    answers: list[httpx.Response] = []
    told: list[httpx.Response] = []

    def story() -> None:
        asyncio.run(until(lambda: service.ready))
        engine.gate.clear()
        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(httpx.post, f"{addresses[0]}/recommend", json=ASK) for _ in range(30)]
            asyncio.run(until(lambda: engine.waits and service.waiting == 29))
            kept = [pool.submit(httpx.post, f"{addresses[0]}/events", json={"events": [EVENT]}) for _ in range(5)]
            asyncio.run(until(lambda: len(service.buffer) == 5))
            os.kill(os.getpid(), signal.SIGTERM)
            engine.gate.set()
            answers.extend(one.result() for one in asked)
            told.extend(one.result() for one in kept)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=story)
    log_as_json()
    serve(make(service, service.settings), port=0, told=lambda address: (addresses.append(address), thread.start()))  # type: ignore[func-returns-value]
    thread.join(10)
    assert [answer.status_code for answer in answers] == [200] * 30
    assert [answer.status_code for answer in told] == [202] * 5
    assert signal.getsignal(signal.SIGTERM) is before
    assert engine.closed
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    requests = [line for line in lines if line["message"] == "request" and line["path"] == "/recommend"]
    assert len(requests) == 30
    assert {"time", "level", "request", "status", "ms", "bundle", "degraded"} <= set(requests[0])
    assert lines[-1]["logger"] == "uvicorn.error"


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    service = service_of(tmp_path, Small())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --port"):
        serve(make(service, service.settings), port=taken.getsockname()[1])
    service.buffer.close()


@pytest.mark.parametrize("rate", ["often", "0/second", ""])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    service = service_of(tmp_path, Small(), settings=Serve(rate=rate))
    with pytest.raises(InputError, match=r"serve\.rate"):
        make(service, service.settings)
    service.buffer.close()
