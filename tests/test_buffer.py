from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import full_disk

from pipeline import config
from pipeline.serving import buffer as module
from pipeline.serving.buffer import Buffer, BufferFullError, Happened, Received, Response
from pipeline.sources import contract

DAY = contract.DAY
TODAY = 20_000 * DAY


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    opened = Buffer(tmp_path)
    yield opened
    opened.close()


def event(item: str, time: int = TODAY, *, user: str = "u1", **labels: float) -> Received:
    return Received(Happened(user, item, "feed", time, True, labels))


def items(buffer: Buffer, time: int = 0, after: int = 0) -> list[str]:
    return [one.item for _, one in buffer.since(time, after=after)]


def drained(path: Path | None) -> list[str]:
    return [] if path is None else pl.read_parquet(path)["item_id"].to_list()


def test_events_are_numbered_in_the_order_in_which_they_came(buffer: Buffer) -> None:
    assert buffer.append([event("a"), event("b")]) == 2
    assert buffer.append([]) == 2
    assert buffer.append([event("c", TODAY - 1)]) == 3
    came = [("a", TODAY), ("b", TODAY), ("c", TODAY - 1)]
    assert list(buffer.since(0)) == [(number, event(*one).happened) for number, one in enumerate(came, 1)]
    assert (buffer.last(), buffer.last_time(), len(buffer)) == (3, TODAY, 3)


def test_since_leaves_out_the_log_and_what_was_heard(buffer: Buffer) -> None:
    buffer.append([event("a", 10), event("b", 12), event("c", 11), event("d", 13)])
    assert items(buffer, time=10) == ["b", "c", "d"]
    assert items(buffer, time=11, after=2) == ["d"]


def test_an_event_comes_back_as_it_was(buffer: Buffer) -> None:
    happened = Happened("ü\0'", "i\n", "shop", -5, False, {"click": 1.0, "play": 2.5})
    buffer.append([Received(happened, {"device": "phone", "place": None, "row": 3.0}, "a1")])
    assert [one for _, one in buffer.since(-10)] == [happened]


def test_it_is_there_after_reopening(tmp_path: Path) -> None:
    first = Buffer(tmp_path)
    first.append([event("a")])
    first.withdraw(["x", "y", "x"])
    first.close()
    again = Buffer(tmp_path)
    assert (items(again), sorted(again.withdrawn()), len(again)) == (["a"], ["x", "y"], 1)
    assert again.append([event("b")]) == 2
    again.close()


def test_a_commit_waits_for_the_disk(buffer: Buffer) -> None:
    assert buffer._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert buffer._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        opened = Buffer(tmp_path)
        for number in range(1_000_000):
            last = opened.append([event(f"i{number}a"), event(f"i{number}b")])
            os.write(writing, f"{last}\n".encode())
    os.close(writing)
    with os.fdopen(reading) as told:
        acknowledged = [int(next(told)) for _ in range(50)]
        os.kill(child, signal.SIGKILL)
        acknowledged += [int(line) for line in told if line.endswith("\n")]
    os.waitpid(child, 0)
    again = Buffer(tmp_path)
    numbers = [number for number, _ in again.since(0)]
    assert acknowledged[-1] <= numbers[-1]
    assert numbers == list(range(1, numbers[-1] + 1))
    assert numbers[-1] % 2 == 0
    again.close()


def test_a_full_disk_keeps_nothing_of_the_batch(buffer: Buffer) -> None:
    buffer.append([event("a")])
    many = [event(f"{'long' * 40}{number}") for number in range(1_000)]
    with full_disk(buffer, spare=4):
        with pytest.raises(BufferFullError, match="the disk is full"):
            buffer.append(many)
        with pytest.raises(BufferFullError):
            buffer.withdraw([one.happened.item for one in many])
        with pytest.raises(BufferFullError):
            buffer.log([answered(f"{'long' * 40}{number}") for number in range(1_000)])
        assert (items(buffer), buffer.withdrawn(), len(buffer)) == (["a"], [], 1)
    assert buffer.append(many) == 1_001


def test_another_fault_of_the_database_is_told_as_it_is(buffer: Buffer) -> None:
    buffer._connection.execute("DROP TABLE withdrawn")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        buffer.withdraw(["a"])


def test_threads_may_share_it(buffer: Buffer) -> None:
    def fill(name: str) -> None:
        for number in range(20):
            buffer.append([event(f"{name}{number}"), event(f"{name}{number}'")])
            assert f"{name}{number}'" in items(buffer)

    threads = [threading.Thread(target=fill, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = items(buffer)
    assert len(found) == len(set(found)) == len(buffer) == 120
    assert all(second == f"{first}'" for first, second in zip(found[::2], found[1::2], strict=True))


def test_a_drained_file_has_the_contracts_columns(buffer: Buffer) -> None:
    phone = {"device": "phone", "row": 3.0}
    buffer.append(
        [
            Received(Happened("7", "a", "feed", TODAY + 5, True, {"click": 1.0, "play": 2.5}), phone, "r1"),
            Received(Happened("8", "b", "shop", TODAY + 4, False, {}), {"row": "x"}),
        ]
    )
    path = buffer.drain(TODAY + DAY, tasks=["click", "like"], durations=["play"], contexts=["device", "row"])
    assert path == buffer.folder / "events-1-2.parquet"
    table = pl.read_parquet(path)
    assert table.schema == {
        **{"user_id": pl.String, "item_id": pl.String, "domain": pl.String, "time": contract.TIME},
        **{"shown": pl.Boolean, "click": pl.Int8, "like": pl.Int8, "play": pl.Float64},
        **{"device": pl.String, "row": pl.String, "request": pl.String},
    }
    first, second = (datetime.fromtimestamp(20_000 * 86_400, UTC).replace(microsecond=place) for place in (5, 4))
    assert table.rows() == [
        ("7", "a", "feed", first, True, 1, 0, 2.5, "phone", "3", "r1"),
        ("8", "b", "shop", second, False, 0, 0, None, None, "x", None),
    ]


def test_a_drained_file_keeps_the_event_contract(buffer: Buffer, tmp_path: Path) -> None:
    buffer.append([event(f"i{number}", TODAY - number, click=number % 2) for number in range(40)])
    path = buffer.drain(TODAY + DAY, tasks=["click"])
    columns = ("user_id", "item_id", "domain", "time", "shown", "click")
    table = config.Table(path=str(path), columns={name: name for name in columns})
    found = contract.write_events(config.MappedLog(events=table), config.Contract(tasks=("click",)), tmp_path)
    assert (found["events"], found["rejected_rows"], found["rate_click"]) == (40, 0, 0.5)


def test_whole_days_are_drained_and_each_event_once(buffer: Buffer) -> None:
    buffer.append([event("a", TODAY - DAY), event("b", TODAY - 1), event("c", TODAY), event("late", TODAY - 2)])
    assert drained(buffer.drain(TODAY + DAY - 1, tasks=[])) == ["a", "b"]
    assert buffer.drain(TODAY + DAY - 1, tasks=[]) is None
    assert buffer.drain(0, tasks=[]) is None
    assert drained(buffer.drain(TODAY + DAY, tasks=[])) == ["c", "late"]
    assert sorted(path.name for path in buffer.folder.glob("*.parquet")) == ["events-1-2.parquet", "events-3-4.parquet"]
    assert buffer.drain(TODAY + 9 * DAY, tasks=[]) is None
    assert items(buffer) == ["a", "b", "c", "late"]


def test_nothing_is_drained_of_an_empty_buffer(buffer: Buffer) -> None:
    assert buffer.drain(TODAY, tasks=[]) is None


def test_only_what_was_drained_is_forgotten_and_its_numbers_stay_taken(buffer: Buffer) -> None:
    buffer.append([event("a", TODAY - 2), event("b", TODAY - 1)])
    assert buffer.forget(TODAY) == 0
    buffer.drain(TODAY, tasks=[])
    assert buffer.forget(TODAY - 1) == 1
    assert items(buffer) == ["b"]
    assert buffer.forget(TODAY) == 1
    assert len(buffer) == 0
    assert buffer.append([event("c")]) == 3
    assert drained(buffer.drain(TODAY + DAY, tasks=[])) == ["c"]


def test_it_forgets_a_little_at_a_time(buffer: Buffer) -> None:
    buffer.append([event("a", TODAY - 2), event("b", TODAY - 1)])
    buffer.drain(TODAY, tasks=[])
    assert [buffer.forget(TODAY, most=1) for _ in range(3)] == [1, 1, 0]


def answered(request: str, time: int = TODAY) -> Response:
    return Response(request, time, "u1", "feed", "bundle-a", {"ranking": "control"}, ["i1", "i2"], ["fine"])


def test_what_was_answered_is_logged_and_forgotten(buffer: Buffer) -> None:
    buffer.log([answered("a", TODAY - 1), answered("b")])
    row = (b'{"ranking":"control"}', b'["i1","i2"]', b'["fine"]')
    kept = [("a", TODAY - 1, "u1", "feed", "bundle-a", *row), ("b", TODAY, "u1", "feed", "bundle-a", *row)]
    assert buffer._connection.execute("SELECT * FROM responses").fetchall() == kept
    assert buffer.forget(TODAY) == 1
    assert buffer._connection.execute("SELECT request FROM responses").fetchall() == [("b",)]


def test_no_room_for_a_drained_file_loses_nothing(buffer: Buffer) -> None:
    buffer.append([event("a", TODAY - 1)])
    temporary = buffer.folder / ".events-1-1.parquet.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(BufferFullError):
        buffer.drain(TODAY, tasks=[])
    assert list(buffer.folder.glob("*.parquet")) == []
    assert drained(buffer.drain(TODAY, tasks=[])) == ["a"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["written", "renamed"])
def test_a_kill_while_draining_loses_and_doubles_nothing(
    buffer: Buffer, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer.append([event("a", TODAY - 1), event("b", TODAY - 1)])

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "written":
            patch.setattr(Path, "rename", kill)
        else:
            patch.setattr(module, "_sync", kill)
        with pytest.raises(Killed):
            buffer.drain(TODAY, tasks=[])
    assert len(list(buffer.folder.glob("events-*.parquet"))) == (step == "renamed")
    buffer.append([event("c", TODAY - 1)])
    again = Buffer(buffer.folder)
    again.drain(TODAY, tasks=[])
    again.close()
    files = sorted(buffer.folder.glob("events-*.parquet"))
    assert [item for path in files for item in drained(path)] == ["a", "b", "c"]


steps = st.lists(st.lists(st.integers(0, 4 * DAY), max_size=4) | st.integers(0, 5 * DAY), max_size=12)


@settings(max_examples=40)
@given(steps)
def test_files_hold_a_prefix_of_the_events_each_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[int] | int]
) -> None:
    buffer = Buffer(tmp_path_factory.mktemp("buffer"))
    came: list[int] = []
    for step in steps:
        if isinstance(step, list):
            buffer.append([event(str(len(came) + place), time) for place, time in enumerate(step)])
            came += step
        else:
            buffer.drain(step, tasks=[])
            files = sorted(buffer.folder.glob("*.parquet"), key=lambda path: int(path.stem.split("-")[1]))
            edges = [tuple(map(int, path.stem.split("-")[1:])) for path in files]
            assert all(before[1] + 1 == after[0] for before, after in pairwise(edges))
            got = [item for path in files for item in drained(path)]
            assert got == list(map(str, range(len(got))))
            following = came[len(got) :]
            assert not following or following[0] >= step // DAY * DAY
    buffer.close()
