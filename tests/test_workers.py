"""Several workers, each in a process of its own, and the one that is a thread."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from served import Small, metric, promote, running, service_of, until

from pipeline.config import Serve
from pipeline.serving.buffer import Buffer
from pipeline.serving.engine import Answer, Question
from pipeline.serving.messages import Ask, Event
from pipeline.serving.pool import FailedError, NotReadyError
from pipeline.serving.service import ForgottenError, Service
from pipeline.serving.starting import in_process, prepare

TWO = Serve(processes=2, together=2)
OFTEN = 40


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    """As the service does: else every worker imports everything anew, seconds on a busy machine."""
    prepare("pipeline.serving.work")


class Fatal(Small):
    """Ends its process over the user "fatal"."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        if questions[0].user == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(questions)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def ask(user: str = "u1", k: int = 3) -> Ask:
    return Ask(user=user, domain="feed", k=k)


def event(item: str, user: str = "u1") -> Event:
    return Event(user=user, item=item, domain="feed")


def listed(body: dict[str, Any]) -> list[str]:
    return [one["item"] for one in body["items"]]


async def complete(service: Service) -> None:
    await until(lambda: len(service.pool.serving) == service.settings.processes)


def test_what_one_worker_is_told_all_know_at_the_next_request(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small(), settings=TWO, start=in_process)) as service:
            await complete(service)
            assert len(service.pool.processes) == 3
            answered = []
            for number in range(OFTEN):
                assert await service.feedback([event(f"i{number}")]) == 1
                bodies = await asyncio.gather(*(service.recommend(ask(), f"{number}-{one}") for one in range(2)))
                assert [listed(body)[0] for body in bodies] == [f"i{number + 1}"] * 2
                answered += [body["worker"] for body in bodies]
            assert {answered.count(worker) for worker in (0, 1)} == {OFTEN}
            await service.withdraw([f"i{OFTEN}"])
            bodies = [await service.recommend(ask(), f"w{number}") for number in range(4)]
            assert [listed(body)[0] for body in bodies] == [f"i{OFTEN + 1}"] * 4
            assert {body["worker"] for body in bodies} == {0, 1}

    run(story())


def test_any_answer_is_explained_by_the_worker_that_gave_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Small(), settings=TWO, start=in_process)) as service:
            await complete(service)
            bodies = [await service.recommend(ask(f"u{number}"), f"r{number}") for number in range(6)]
            assert {body["worker"] for body in bodies} == {0, 1}
            for number in range(6):
                assert (await service.explain(f"r{number}"))["request"] == f"r{number}"
                assert (await service.why(f"r{number}", "x"))["because"] == f"u{number} was not shown it"

    run(story())


def test_a_killed_worker_loses_no_request_and_no_event_and_comes_back(tmp_path: Path) -> None:
    """Workers are killed in turn under load: every request is answered, by the other or the one that comes after, every
    acknowledged event is heard by all, and what was answered by one who is gone is not explained."""

    async def story() -> None:
        small, settings = Small(seconds=0.005), Serve(processes=2, traces=100_000)
        async with running(service_of(tmp_path, small, settings=settings, start=in_process)) as service:
            await complete(service)
            await service.recommend(ask("before"), "before")
            told = 0
            ending = asyncio.Event()

            async def tell() -> None:
                nonlocal told
                while not ending.is_set():
                    told += await service.feedback([event(f"i{told}")])
                    await asyncio.sleep(0.005)

            async def demand(client: int) -> int:
                answers = 0
                while not ending.is_set():
                    body = await service.recommend(ask(f"u{client}"), f"{client}-{answers}")
                    answers += len(body["items"]) == 3
                return answers

            load = [asyncio.create_task(tell()), *(asyncio.create_task(demand(client)) for client in range(2, 8))]
            gone = [one.process for one in service.pool.workers]
            for process in gone:
                await asyncio.sleep(0.2)
                os.kill(process, signal.SIGKILL)
                await until(lambda process=process: process not in service.pool.processes)  # type: ignore[misc]
                await complete(service)
            assert not service.pool.processes & set(gone)
            ending.set()
            _, *answers = await asyncio.gather(*load)
            assert min(answers) > 5
            assert metric(service, "recfunnel_worker_deaths_total") == 2
            with pytest.raises(ForgottenError, match="a worker that has ended"):
                await service.explain("before")
            bodies = [await service.recommend(ask(), f"after{number}") for number in range(4)]
            assert {body["worker"] for body in bodies} == {0, 1}
            assert [listed(body)[0] for body in bodies] == [f"i{told}"] * 4
        assert [one.item for _, one in Buffer(tmp_path).since(0)] == [f"i{number}" for number in range(told)]

    run(story())


def test_a_request_over_which_two_workers_end_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(service_of(tmp_path, Fatal(), settings=TWO, start=in_process)) as service:
            await complete(service)
            with pytest.raises((FailedError, NotReadyError)):
                await service.recommend(ask("fatal"), "r")
            await complete(service)
            assert listed(await service.recommend(ask(), "s")) == ["i0", "i1", "i2"]

    run(story())


def test_a_worker_that_is_stuck_is_ended_and_another_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.pool.STUCK_SECONDS", 0.5)

    async def story() -> None:
        async with running(service_of(tmp_path, Small(), settings=TWO, start=in_process)) as service:
            await complete(service)
            stuck = service.pool.workers[0].process
            os.kill(stuck, signal.SIGSTOP)
            bodies = await asyncio.gather(*(service.recommend(ask(), f"r{number}") for number in range(4)))
            assert {body["worker"] for body in bodies} == {1}
            await complete(service)
            assert stuck not in service.pool.processes
            assert metric(service, "recfunnel_worker_deaths_total") == 1

    run(story())


def test_a_bundle_is_checked_once_and_serves_when_all_have_it(tmp_path: Path) -> None:
    async def story() -> None:
        engines = Small("bundle-a"), Small("bundle-b")
        async with running(service_of(tmp_path, *engines, settings=TWO, start=in_process, opening=0.05)) as service:
            await complete(service)
            ending = asyncio.Event()

            async def demand(client: int) -> list[str]:
                bundles = []
                while not ending.is_set():
                    bundles.append((await service.recommend(ask(f"u{client}"), f"{client}"))["bundle"])
                return bundles

            load = [asyncio.create_task(demand(client)) for client in range(4)]
            promote(tmp_path, "bundle-b")
            await until(lambda: service.serving is not None and service.serving.bundle == "bundle-b")
            assert len(service.pool.serving) == 2
            told = await asyncio.gather(*(service.recommend(ask(), f"b{number}") for number in range(OFTEN)))
            assert {(body["worker"], body["bundle"]) for body in told} == {(0, "bundle-b"), (1, "bundle-b")}
            promote(tmp_path, "bundle-broken")
            await until(lambda: service.refused is not None)
            assert service.pool.wanted == ["bundle-b"]
            assert len(service.pool.serving) == 2
            assert metric(service, "recfunnel_worker_deaths_total") == 0
            ending.set()
            for bundles in await asyncio.gather(*load):
                assert bundles == sorted(bundles)
            assert metric(service, "recfunnel_refusals_total") == 1
            checks = (tmp_path / "checks.txt").read_text().split()
            assert checks.count("bundle-a") == checks.count("bundle-b") == 1

    run(story())


def test_at_the_end_every_process_ends(tmp_path: Path) -> None:
    async def story() -> None:
        small = Small(seconds=0.01)
        service = service_of(tmp_path, small, settings=TWO, start=in_process)
        await service.start()
        await complete(service)
        workers = service.pool.processes - {os.getpid()}
        asked = [service.recommend(ask(f"u{number}"), f"r{number}") for number in range(20)]
        await asyncio.sleep(0)
        for process in workers:
            os.kill(process, signal.SIGTERM)
        await service.close()
        assert [(await one)["request"] for one in asked] == [f"r{number}" for number in range(20)]
        for process in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)

    run(story())


def test_workers_end_when_the_service_is_killed(tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    told, telling = spawned.Pipe(duplex=False)
    process = spawned.Process(target=serve_and_tell, args=(tmp_path, telling))
    process.start()
    assert told.poll(60)
    workers = told.recv()
    assert len(workers) == 2
    process.kill()
    process.join()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end, "a worker has outlived its service"
        time.sleep(0.01)


def serve_and_tell(folder: Path, telling: Connection) -> None:
    """Serve, and tell the workers' processes."""

    async def story() -> None:
        service = service_of(folder, Small(), settings=TWO, start=in_process)
        await service.start()
        await complete(service)
        telling.send(service.pool.processes - {os.getpid()})
        await asyncio.sleep(60)

    asyncio.run(story())


def test_what_was_left_behind_comes_with_the_users_next_request(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Small(left=(3, 4))
        async with running(service_of(tmp_path, engine)) as service:
            for request, user in (("a", "u1"), ("b", "u1"), ("c", "u2")):
                await service.recommend(ask(user), request)
        first, second, third = (question for batch in engine.batches for question in batch)
        assert (first.left, third.left) == ({}, {})
        [(domain, (moment, items))] = second.left.items()
        assert (domain, moment, items.tolist()) == ("feed", first.time, [3, 4])

    run(story())
