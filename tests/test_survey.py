"""What row groups hold: read once, and the same as reading all."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import survey
from pipeline.features.partition import DAY

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.sampled_from(["home", "live"]), st.integers(0, 5))
)
LOG = st.lists(ROWS.filter(bool), min_size=1, max_size=5)


def write(path: Path, groups: list[list[tuple[int, str, str, int]]]) -> pl.DataFrame:
    """A log with these row groups of user, item, domain and day."""
    schema = {"user_id": pl.Int64, "item_id": pl.String, "domain": pl.String, "time": pl.Int64}
    frames = [pl.DataFrame(rows, schema=schema, orient="row") for rows in groups]
    frames = [frame.with_columns((pl.col("time") * DAY + 5).cast(pl.Datetime("us", "UTC"))) for frame in frames]
    with pq.ParquetWriter(path, frames[0].to_arrow().schema) as writer:
        for frame in frames:
            writer.write_table(frame.to_arrow())
    return pl.concat(frames)


@settings(deadline=None, max_examples=40)
@given(st.lists(LOG, min_size=1, max_size=4))
def test_a_log_looked_at_before_is_as_one_looked_at_anew(tmp_path_factory: pytest.TempPathFactory, logs) -> None:
    """Logs that grow, shrink and change, against a plain look at all rows."""
    folder = tmp_path_factory.mktemp("survey")
    for groups in logs:
        log = write(folder / "events.parquet", groups)
        found = survey.survey(folder / "events.parquet", folder / "kept")
        for kind, table in found.first.items():
            expected = {}
            for value, time in log.select(kind, pl.col("time").dt.epoch("us")).iter_rows():
                expected[value] = min(time // DAY, expected.get(value, 99))
            assert dict(table.iter_rows()) == expected
        assert [sum(days.values()) for days in found.days] == [len(rows) for rows in groups]
        assert [set(days) for days in found.days] == [{row[3] for row in rows} for rows in groups]
        assert list(found.made_from()) == sorted({row[3] for rows in groups for row in rows})
        assert len(list((folder / "kept").iterdir())) == 1


def test_only_new_row_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, third = ([(user, "a", "home", day)] for user, day in ((1, 3), (2, 4), (1, 1)))
    read = []

    class File(pq.ParquetFile):
        def read_row_groups(self, groups, columns):
            read.extend(groups)
            return super().read_row_groups(groups, columns)

    monkeypatch.setattr(survey.pq, "ParquetFile", File)
    for groups, new in (([one, other], [0, 1]), ([one, other, third], [2]), ([third, one, other], []), ([one], [0])):
        write(tmp_path / "events.parquet", groups)
        read.clear()
        first = survey.survey(tmp_path / "events.parquet", tmp_path / "kept").first["user_id"]
        assert read == new
        assert dict(first.iter_rows())[1] == (1 if third in groups else 3)


def test_the_hash_of_a_row_group_is_that_of_its_bytes_and_types(tmp_path: Path) -> None:
    one, other = [(1, "a", "home", 3)], [(1, "a", "live", 3)]
    write(tmp_path / "log.parquet", [one, other, one])
    prints = survey.fingerprints(tmp_path / "log.parquet")
    assert prints[0] == prints[2] != prints[1]
    frame = pl.read_parquet(tmp_path / "log.parquet")
    frame.with_columns(pl.col("user_id").cast(pl.UInt64)).write_parquet(tmp_path / "other.parquet")
    assert not set(survey.fingerprints(tmp_path / "other.parquet")) & set(prints)
