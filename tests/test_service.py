from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from served import END, Small, full_disk, metric, promote, running, service_of, until

from pipeline.config import Arm, Layer, Serve
from pipeline.lake import InputError
from pipeline.serving.buffer import Buffer, BufferFullError, Happened, Received
from pipeline.serving.messages import Ask, Event
from pipeline.serving.pool import FailedError, NotReadyError
from pipeline.serving.service import (
    SECOND,
    Clock,
    ForgottenError,
    OverloadedError,
    RefusedError,
    Service,
)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


def ask(user: str = "u1", **rest: Any) -> Ask:
    return Ask(user=user, domain=rest.pop("domain", "feed"), k=rest.pop("k", 3), **rest)


def event(item: str, user: str = "u1", **rest: Any) -> Event:
    return Event(user=user, item=item, domain=rest.pop("domain", "feed"), **rest)


def listed(body: dict[str, Any]) -> list[str]:
    return [one["item"] for one in body["items"]]


def test_a_request_is_answered_and_remembered(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            body = await service.recommend(ask(context={"device": "phone"}), "a1")
            assert (body["request"], body["bundle"], listed(body)) == ("a1", "bundle-a", ["i0", "i1", "i2"])
            [[question]] = engine.batches
            assert (question.user, question.domain, question.k, question.context) == (
                "u1",
                "feed",
                3,
                {"device": "phone"},
            )
            assert END < question.time < END + 30 * SECOND
            assert await service.explain("a1") == {"request": "a1", "bundle": "bundle-a", "stages": []}
            assert (await service.why("a1", "i9"))["because"] == "u1 was not shown it"
            assert engine.threads == {"funnel"}
            assert metric(service, "recfunnel_stage_seconds_count", stage="fine") == 1
            assert metric(service, "recfunnel_degraded_total", stage="route:tag") == 1
        assert engine.closed

    run(story())


def test_what_waits_is_answered_together(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine, settings=Serve(together=4))) as service:
            engine.gate.clear()
            first = service.recommend(ask("first"), "r")
            await until(lambda: engine.waits)
            others = [service.recommend(ask(f"u{n}"), f"r{n}") for n in range(6)]
            await until(lambda: service.waiting == 6)
            engine.gate.set()
            bodies = await asyncio.gather(first, *others)
            assert [len(batch) for batch in engine.batches] == [1, 4, 2]
            assert [body["user"] for body in bodies] == ["first", *(f"u{n}" for n in range(6))]

    run(story())


def test_one_bad_request_spoils_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            engine.gate.clear()
            asked = [service.recommend(ask(user), user) for user in ("first", "u1", "poison", "u2")]
            asked.append(service.recommend(ask("u3", domain="attic"), "u3"))
            await until(lambda: service.waiting < 5)
            engine.gate.set()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert [isinstance(one, dict) for one in answers] == [True, True, False, True, False]
            assert isinstance(answers[2], FailedError)
            assert str(answers[2]) == "ZeroDivisionError: poison"
            assert str(answers[4]) == "domain: domain 'attic' is unknown; there are feed, shop"

    run(story())
    assert "request poison failed" in caplog.text


def test_more_than_may_wait_is_refused_and_the_others_are_answered(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine, settings=Serve(queue=3))) as service:
            engine.gate.clear()
            asked = [service.recommend(ask(), "r")]
            await until(lambda: service.waiting == 0)
            asked += [service.recommend(ask(), f"r{n}") for n in range(3)]
            with pytest.raises(OverloadedError, match="3 requests wait"):
                service.recommend(ask(), "one too many")
            assert metric(service, "recfunnel_waiting") == 3
            engine.gate.set()
            assert len(await asyncio.gather(*asked)) == 4
            await service.recommend(ask(), "again")

    run(story())


def test_nothing_is_done_for_a_client_that_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            engine.gate.clear()
            first = service.recommend(ask("first"), "r")
            await until(lambda: service.waiting == 0)
            gone, stays = (service.recommend(ask(user), user) for user in ("gone", "stays"))
            await until(lambda: service.waiting == 2)
            gone.cancel()
            engine.gate.set()
            await asyncio.gather(first, stays)
            assert engine.asked == ["first", "stays"]

    run(story())


def test_an_acknowledged_event_counts_with_the_next_request(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            for number in range(30):
                body = await service.recommend(ask(k=1), "r")
                assert listed(body) == [f"i{number}"]
                assert await service.feedback([event(f"i{number}", labels={"click": 1})]) == 1
            await until(lambda: engine.recounts > 1)
        assert [one.item for one in engine.heard] == [f"i{number}" for number in range(30)]
        assert engine.heard[0].labels == {"click": 1}

    run(story())


def test_feedback_of_many_clients_is_kept_in_one_order(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            told = [service.feedback([event(f"{n}a"), event(f"{n}b")]) for n in range(50)]
            assert await asyncio.gather(*told) == [2] * 50
            assert metric(service, "recfunnel_events_total") == 100
            assert metric(service, "recfunnel_buffer_events") == 100
        assert engine.heard == [one for _, one in Buffer(tmp_path).since(0)]

    run(story())


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        ({"domain": "attic"}, "events.1.domain", "domain 'attic' is unknown; there are feed, shop"),
        ({"labels": {"clack": 1}}, "events.1.labels", "label 'clack' is unknown; there are click, like, play"),
        ({"labels": {"click": 0.5}}, "events.1.labels", "click happened (1) or did not (0), not 0.5"),
        ({"time": datetime(2100, 1, 1, tzinfo=UTC)}, "events.1.time", "in the future; here it is 2025-11-24T16:00"),
        ({"time": datetime(1989, 12, 31, 23, 59)}, "events.1.time", "before 1990"),
    ],
)
def test_what_cannot_be_is_refused_with_all_that_came_with_it(
    tmp_path: Path, wrong: dict[str, Any], field: str, message: str
) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            with pytest.raises(RefusedError) as told:
                await service.feedback([event("a"), event("b", **wrong)])
            assert told.value.field == field
            assert str(told.value).startswith(f"{field}: {message}")
            assert len(service.buffer) == 0

    run(story())


def test_times_of_events(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            before = service.clock.now()
            now = datetime.fromtimestamp(before / SECOND, UTC)
            ahead, naive = now + timedelta(seconds=50), datetime(2025, 11, 24, 15, 59, 59)
            east = datetime(2025, 11, 24, 15, 59, 59, tzinfo=timezone(timedelta(hours=1)))
            await service.feedback([event("a"), *(event("b", time=moment) for moment in (ahead, naive, east))])
            after = service.clock.now()
            none, clipped, *rest = [one.time for _, one in service.buffer.since(0)]
            assert before <= none == clipped <= after
            assert rest == [END - SECOND, END - 3_601 * SECOND]

    run(story())


def test_a_duration_may_be_any_number(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            await service.feedback([event("a", shown=False, labels={"play": 12.5}, request="r")])
        assert [(one.shown, one.labels) for one in engine.heard] == [(False, {"play": 12.5})]

    run(story())


def test_a_full_disk_is_told_and_the_engine_hears_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            with full_disk(service.buffer), pytest.raises(BufferFullError):
                await service.feedback([event("long" * 40 + str(number)) for number in range(900)])
            assert engine.heard == []
            assert await service.feedback([event("a")]) == 1
        assert [one.item for one in engine.heard] == ["a"]

    run(story())


def test_what_was_answered_is_logged_for_want_of_room_without(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small())) as service:
            await service.recommend(ask(), "a")
            connection = sqlite3.connect(tmp_path / "live.db", timeout=10, isolation_level=None)
            connection.execute("ALTER TABLE responses RENAME TO elsewhere")
            await until(lambda: metric(service, "recfunnel_unlogged_total") == 1)
            connection.execute("ALTER TABLE elsewhere RENAME TO responses")
            await service.recommend(ask(), "b")
        rows = connection.execute("SELECT request, bundle, items, degraded FROM responses").fetchall()
        connection.close()
        assert rows == [("b", "bundle-a", b'["i0","i1","i2"]', b'["route:tag"]')]

    run(story())


def test_a_withdrawn_item_is_not_shown_again_not_even_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        for engine in (Small(), Small()):
            async with running(service_of(tmp_path, engine)) as service:
                assert await service.withdraw(["i0", "i2"]) == 2
                assert listed(await service.recommend(ask(), "r")) == ["i1", "i3", "i4"]
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            assert listed(await service.recommend(ask(), "r")) == ["i1", "i3", "i4"]

    run(story())


def test_what_is_not_remembered_is_told_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small(), settings=Serve(traces=2))) as service:
            for request in "abc":
                await service.recommend(ask(), request)
            with pytest.raises(ForgottenError, match="the last 2 answers"):
                await service.explain("a")
            assert (await service.explain("b"))["request"] == "b"

    run(story())


def test_a_log_clock_goes_on_from_the_logs_end_and_never_back(tmp_path: Path) -> None:
    clock = Clock("log")
    clock.reach(END)
    clock.reach(END - SECOND)
    first = clock.now()
    time.sleep(0.002)
    assert END <= first < clock.now() < END + 10 * SECOND
    wall = Clock("wall")
    wall.reach(2 * END)
    assert abs(wall.now() - time.time() * SECOND) < SECOND

    async def story() -> None:
        later = Received(Happened("u1", "i0", "feed", END + 3_600 * SECOND, True, {}))
        buffer = Buffer(tmp_path)
        buffer.append([later])
        buffer.close()
        engine = Small()
        async with running(service_of(tmp_path, engine)) as service:
            assert service.clock.now() > later.happened.time
            assert listed(await service.recommend(ask(k=1), "r")) == ["i1"]

    run(story())


def test_a_restart_hears_what_was_acknowledged(tmp_path: Path) -> None:
    async def story() -> None:
        first, second = Small(), Small()
        old = datetime(2025, 11, 20, tzinfo=UTC)
        async with running(service_of(tmp_path, first)) as service:
            await service.feedback([event(f"i{number}") for number in range(2_500)] + [event("in the log", time=old)])
        async with running(service_of(tmp_path, second)) as service:
            await service.feedback([event("x")])
        assert len(first.heard) == 2_500
        assert second.heard[:-1] == first.heard
        assert second.heard[-1].item == "x"
        assert second.recounts >= 1

    run(story())


def test_bundles_change_under_load_and_nobody_notices(tmp_path: Path) -> None:
    """Clients ask and tell without a pause while bundles follow each other: each request is answered, and each engine
    hears each event later than its log's end once, in order."""

    async def story() -> None:
        engines = [Small(f"bundle-{name}", END + number, seconds=0.001) for number, name in enumerate("abcd")]
        service = service_of(tmp_path, *engines, opening=0.05)
        done = asyncio.Event()
        told = 0

        async def tell(client: int) -> None:
            nonlocal told
            while not done.is_set():
                kept = await service.feedback([event(f"{client}-{told}"), event("again")])
                told += kept

        async def demand(client: int) -> list[str]:
            bundles = []
            while not done.is_set():
                bundles.append((await service.recommend(ask(f"u{client}"), f"{client}"))["bundle"])
            return bundles

        async with running(service):
            tellers = [asyncio.create_task(tell(client)) for client in range(4)]
            askers = [asyncio.create_task(demand(client)) for client in range(4)]
            for name in ("bundle-b", "bundle-c", "bundle-d"):
                await asyncio.sleep(0.1)
                promote(tmp_path, name)
                await until(lambda name=name: in_service(service) == name)  # type: ignore[misc]
            await asyncio.sleep(0.1)
            done.set()
            await asyncio.gather(*tellers)
            answered = await asyncio.gather(*askers)
        kept = [one for _, one in Buffer(tmp_path).since(0)]
        assert len(kept) == told > 50
        for engine in engines:
            assert 0 < len(engine.heard) <= told
            assert engine.heard == kept[: len(engine.heard)]
            assert engine.threads == {"funnel"}
        assert engines[-1].heard == kept
        for bundles in answered:
            assert bundles == sorted(bundles)
            assert set(bundles) == {"bundle-a", "bundle-b", "bundle-c", "bundle-d"}
        assert metric(service, "recfunnel_swaps_total") == 4

    run(story())


def in_service(service: Service) -> str | None:
    return service.serving.bundle if service.serving else None


def test_a_refused_bundle_leaves_the_old_one_in_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        first, second = Small("bundle-a"), Small("bundle-b")
        async with running(service_of(tmp_path, first, second)) as service:
            promote(tmp_path, "bundle-broken")
            await until(lambda: service.refused is not None)
            assert service.refused == (
                "bundle-broken",
                "bundle-broken: features/users.parquet is not the file that was written",
            )
            assert (await service.recommend(ask(), "r"))["bundle"] == "bundle-a"
            assert metric(service, "recfunnel_bundle", bundle="bundle-broken", state="refused") == 1
            assert metric(service, "recfunnel_bundle", bundle="bundle-a", state="serving") == 1
            await asyncio.sleep(0.1)
            assert metric(service, "recfunnel_refusals_total") == 1
            (tmp_path / "champion.json").write_text("{")
            await until(lambda: metric(service, "recfunnel_refusals_total") == 2)
            promote(tmp_path, "bundle-b")
            await until(lambda: in_service(service) == "bundle-b")
            assert service.refused is None
            assert metric(service, "recfunnel_bundle", bundle="bundle-broken", state="refused") is None

    run(story())
    assert "refused" in caplog.text


def test_a_bundle_that_fails_otherwise_is_refused_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Small):
        def users(self, most: int) -> list[str]:
            raise ZeroDivisionError(f"no users, not {most}")

    async def story() -> None:
        async with running(service_of(tmp_path, Small(), Broken("bundle-b"))) as service:
            promote(tmp_path, "bundle-b")
            await until(lambda: service.refused is not None)
            assert service.refused == ("bundle-b", "ZeroDivisionError: no users, not 100")
            assert in_service(service) == "bundle-a"

    run(story())
    assert "no users" in caplog.text


def test_without_a_bundle_nothing_is_answered_until_there_is_one(tmp_path: Path) -> None:
    async def story() -> None:
        service = service_of(tmp_path, Small())
        (tmp_path / "champion.json").unlink()
        await service.start()
        with pytest.raises(NotReadyError, match="no bundle is in service yet"):
            service.recommend(ask(), "r")
        for call in (service.feedback([event("a")]), service.withdraw(["a"])):
            with pytest.raises(NotReadyError, match="no bundle is in service yet"):
                await call
        promote(tmp_path, "bundle-x")
        await until(lambda: service.refused is not None)
        with pytest.raises(NotReadyError, match=r"yet; bundle-x was refused: bundle-x: features/users\.parquet"):
            service.about()
        promote(tmp_path, "bundle-a")
        await until(lambda: service.ready)
        assert (await service.recommend(ask(), "r"))["bundle"] == "bundle-a"
        await service.close()

    run(story())


def test_rolled_back_the_bundle_from_beside_serves_again_and_has_missed_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        first, second = Small("bundle-a"), Small("bundle-b")
        async with running(service_of(tmp_path, first, second, settings=Serve(beside=True))) as service:
            await service.recommend(ask(), "old")
            promote(tmp_path, "bundle-b", "bundle-a")
            await until(lambda: in_service(service) == "bundle-b")
            assert service.about()["beside"] == "bundle-a"
            assert (await service.explain("old"))["bundle"] == "bundle-a"
            await service.feedback([event("i0")])
            theirs = await asyncio.gather(service.recommend(ask(), "r"), service.recommend(ask(beside=True), "s"))
            assert [(one["bundle"], listed(one)[0]) for one in theirs] == [("bundle-b", "i1"), ("bundle-a", "i1")]
            await service.withdraw(["i1"])
            promote(tmp_path, "bundle-a", "bundle-b")
            await until(lambda: in_service(service) == "bundle-a")
            assert listed(await service.recommend(ask(), "t"))[0] == "i2"
            assert not first.closed
        assert first.heard == second.heard
        assert len(first.heard) == 1
        assert first.closed
        assert second.closed

    run(story())


def test_a_bundle_that_cannot_stand_beside_hinders_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small("bundle-a"), settings=Serve(beside=True))) as service:
            promote(tmp_path, "bundle-a", "bundle-gone")
            await until(lambda: "bundle-gone cannot stand beside" in caplog.text)
            assert service.about()["beside"] is None
            with pytest.raises(RefusedError, match="beside: no bundle stands beside"):
                await service.recommend(ask(beside=True), "r")

    run(story())


def test_an_answer_of_a_bundle_that_is_gone_is_not_explained(tmp_path: Path) -> None:
    async def story() -> None:
        first, second = Small("bundle-a"), Small("bundle-b")
        async with running(service_of(tmp_path, first, second)) as service:
            await service.recommend(ask(), "r")
            promote(tmp_path, "bundle-b")
            await until(lambda: in_service(service) == "bundle-b")
            await until(lambda: first.closed)
            with pytest.raises(ForgottenError, match="answered by bundle-a, which is no longer in service"):
                await service.why("r", "i0")

    run(story())


def test_arms_change_parameters_and_may_ask_the_bundle_beside(tmp_path: Path) -> None:
    half = Layer("ranking", "s1", (Arm("short", 0.5, {"keep": 3}),))
    other = Layer("bundle", "s2", (Arm("before", 0.5, {"beside": True}),))

    async def story() -> None:
        first, second = Small("bundle-a"), Small("bundle-b")
        settings = Serve(beside=True, layers=(half, other))
        promote(tmp_path, "bundle-a", "bundle-b")
        async with running(service_of(tmp_path, first, second, settings=settings)) as service:
            for user in map("u{}".format, range(60)):
                body = await service.recommend(ask(user), user)
                assert body["bundle"] == {"before": "bundle-b", "control": "bundle-a"}[body["arms"]["bundle"]]
        asked = [question for engine in (first, second) for batch in engine.batches for question in batch]
        assert len(asked) == 60
        assert {(one.arms["ranking"], one.parameters.keep) for one in asked} == {("short", 3), ("control", 10)}
        assert first.batches
        assert second.batches

    run(story())


def test_a_bundle_that_cannot_do_what_an_arm_wants_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        layer = Layer("ranking", "s", (Arm("odd", 0.5, {"kepe": 3}),))
        service = service_of(tmp_path, Small(), settings=Serve(layers=(layer,)))
        await service.start()
        await until(lambda: service.refused is not None)
        assert service.refused == ("bundle-a", "serve.layers: 'kepe' is no parameter")
        await service.close()

    run(story())


def test_layers_that_are_not_independent_are_refused_at_once(tmp_path: Path) -> None:
    same = [Layer(name, "s", ()) for name in "ab"]
    with pytest.raises(InputError, match="salt"):
        service_of(tmp_path, Small(), settings=Serve(layers=tuple(same)))


def test_at_its_end_what_waits_is_answered_and_written(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small(seconds=0.005)
        service = service_of(tmp_path, engine)
        await service.start()
        await until(lambda: service.ready)
        asked = [service.recommend(ask(f"u{n}"), f"r{n}") for n in range(40)]
        told = [asyncio.create_task(service.feedback([event(f"i{n}")])) for n in range(40)]
        await asyncio.sleep(0)
        await service.close()
        assert [one["request"] for one in await asyncio.gather(*asked)] == [f"r{n}" for n in range(40)]
        assert await asyncio.gather(*told) == [1] * 40
        with pytest.raises(NotReadyError, match="ending"):
            service.recommend(ask(), "late")
        with pytest.raises(NotReadyError, match="ending"):
            await service.feedback([event("late")])

    run(story())
    with sqlite3.connect(tmp_path / "live.db") as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (40,)
        requests = connection.execute("SELECT request FROM responses").fetchall()
    connection.close()
    assert sorted(requests) == sorted((f"r{n}",) for n in range(40))


def test_drained_events_are_forgotten_after_a_while(tmp_path: Path) -> None:
    async def story() -> None:
        buffer = Buffer(tmp_path)
        week = 7 * 86_400 * SECOND
        times = {"old": END - week - 1, "new": END}
        buffer.append([Received(Happened("u1", name, "feed", moment, True, {})) for name, moment in times.items()])
        buffer.drain(END + week, tasks=[])
        buffer.close()
        async with running(service_of(tmp_path, Small())) as service:
            await until(lambda: len(service.buffer) == 1)
            assert [one.item for _, one in service.buffer.since(0)] == ["new"]

    run(story())


def test_a_failure_of_counting_or_hearing_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(Small):
        def record(self, events: Sequence[Happened]) -> None:
            raise ZeroDivisionError(f"record {len(events)}")

        def recount(self) -> None:
            self.recounts += 1
            if self.recounts > 1:
                raise ZeroDivisionError("recount")

    async def story() -> None:
        async with running(service_of(tmp_path, Forgetful())) as service:
            assert await service.feedback([event("a")]) == 1
            await until(lambda: "could not count anew" in caplog.text)
            assert (await service.recommend(ask(), "r"))["request"] == "r"

    run(story())
    assert "could not be recorded; it is in the buffer" in caplog.text


def test_about(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small())) as service:
            told = service.about()
            assert orjson.dumps(told)
            assert told.pop("time").startswith("2025-11-24T16:00:")
            assert told == {
                **{"bundle": "bundle-a", "beside": None, "domains": ["feed", "shop"], "tasks": ["click", "like"]},
                **{"durations": ["play"], "contexts": ["device"], "users": ["u1", "u2"]},
            }

    run(story())
