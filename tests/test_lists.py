from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.lake import InputError
from pipeline.sources import lists


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1 5 3\n0 7\n\n2\n")
    (tmp_path / "test.txt").write_text("0 3 \n")
    train, test = lists.pairs(tmp_path)
    assert train.rows() == [(0, 7, 0), (1, 5, 0), (1, 3, 1)]
    assert test.rows() == [(0, 3, 0)]


def test_leaving_events_out() -> None:
    columns = {"user": [1, 1, 1, 2, 2, 3], "item": [4, 5, 6, 7, 8, 9], "position": [0, 1, 2, 0, 1, 0]}
    table = pl.DataFrame(columns).cast(lists.COLUMNS)  # type: ignore[arg-type]
    before, last = lists.leave_out(table, 1)
    assert before["item"].to_list() == [4, 5, 7]
    assert last["item"].to_list() == [6, 8, 9]
    before, last = lists.leave_out(table, 2)
    assert before["item"].to_list() == [4]
    assert last["item"].to_list() == [5, 7]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2\n3 x 5\n", "line 2: 'x'"),
        ("1 -2\n", "line 1: '-2'"),
        ("", "empty"),
        ("1 2\n1 3\n", "two lines"),
        (None, "REC_DATA"),
    ],
)
def test_bad_files_say_what_to_mend(text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        lists.sequences(path)
    assert str(path) in str(caught.value)
