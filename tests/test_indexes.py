"""Forward and inverted indexes against plain loops over the table."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from day_files import read_log
from event_tables import CONTRACT, FEATURES, write_events
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Split
from pipeline.features import indexes
from pipeline.features.build import build
from pipeline.features.indexes import Indexes
from pipeline.lake import InputError

ITEMS = pl.DataFrame(
    {
        "item_id": [None, "a", "b", "c", "d"],
        "author_id": [None, 7, 7, None, 12],
        "category": [None, "sport", "news", "sport", "sport"],
        "tags": [None, ["x", "y", "x"], [], ["y"], None],
        "tag": [None, "x", None, "y", None],
        "content": pl.Series([None, [1.0, 0.0], None, None, None], dtype=pl.Array(pl.Float32, 2)),
    }
)
SCORES = np.array([9, 1, 5, 4, 1])
USERS = pl.DataFrame({"user_id": [None, 5], "follows": [None, [7, 12]], "place": [None, "u33db"]})


@pytest.fixture
def opened(tmp_path) -> Indexes:
    indexes.write(USERS, ITEMS, SCORES, tmp_path)
    return Indexes.open(tmp_path)


def test_inverted_by_hand(opened):
    """Sport: item 3 is the best, 1 and 4 are as good as each other; the unknown item 0 has no values."""
    assert opened.items_of("category", "sport").tolist() == [3, 1, 4]
    assert opened.items_of("author_id", "7").tolist() == [2, 1]
    assert opened.items_of("tags", "x").tolist() == [1]
    assert opened.items_of("tags", "y").tolist() == [3, 1]
    assert list(opened.inverted) == ["author_id", "category", "tags"]


@pytest.mark.parametrize("value", ["", "a", "sporty", "zebra"])
def test_a_value_that_no_item_has(opened, value):
    found = opened.items_of("category", value)
    assert found.dtype == np.int32
    assert len(found) == 0


def test_forward_by_hand(opened):
    assert opened.attributes_of(1) == {
        "item_id": "a",
        "author_id": 7,
        "category": "sport",
        "tags": ["x", "y", "x"],
        "tag": "x",
    }
    assert set(opened.attributes_of(0).values()) == {None}


def test_the_users_attributes(opened):
    assert opened.users.to_pylist()[1] == {"user_id": 5, "follows": [7, 12], "place": "u33db"}


def test_the_whole_of_an_attribute_as_a_matrix(opened):
    values, has = opened.matrix("tags")
    assert values.to_list() == ["x", "y"]
    assert has.toarray().tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 1, 0]]


def test_the_lists_lie_in_the_file(opened):
    found = opened.items_of("category", "sport")
    assert not found.flags.owndata
    assert not found.flags.writeable


def test_mistakes_name_the_fix(opened, tmp_path):
    with pytest.raises(InputError, match=r"no index of 'place'; there are author_id, category, tags"):
        opened.items_of("place", "rome")
    with pytest.raises(InputError, match=r"no index_\*\.arrow; build its features first"):
        Indexes.open(tmp_path / "elsewhere")


def test_no_items_at_all(tmp_path):
    indexes.write(USERS, ITEMS[:1], SCORES[:1], tmp_path)
    assert len(Indexes.open(tmp_path).items_of("tags", "x")) == 0


texts = st.text(alphabet="aé€𝄞z*", max_size=2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(texts, max_size=3) | st.none(), texts | st.none(), st.integers(0, 2)), max_size=25))
def test_against_a_loop(rows):
    table = pl.DataFrame(
        {"tags": [None, *(row[0] for row in rows)], "place": [None, *(row[1] for row in rows)]},
        schema={"tags": pl.List(pl.String), "place": pl.String},
    )
    scores = np.array([0, *(row[2] for row in rows)])
    with tempfile.TemporaryDirectory() as folder:
        indexes.write(USERS, table, scores, Path(folder))
        found = Indexes.open(Path(folder))
        best = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
        for value in {"q", *(tag for row in rows for tag in row[0] or []), *(row[1] for row in rows if row[1])}:
            tagged = [item for item in best if item and value in (rows[item - 1][0] or [])]
            placed = [item for item in best if item and value == rows[item - 1][1]]
            assert found.items_of("tags", value).tolist() == tagged
            assert found.items_of("place", value).tolist() == placed


def test_the_features_stage_writes_them_the_same_every_time(tmp_path):
    """A tag's items come in order of their clicks on training rows; numbers are those of items.parquet."""
    events = write_events(tmp_path / "events")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        build(events, tmp_path / name, features=FEATURES, contract=CONTRACT, split=Split())
    paths = sorted((tmp_path / "one").glob("index_*.arrow"))
    assert [path.stem for path in paths] == [
        "index_author_id",
        "index_category",
        "index_items",
        "index_tags",
        "index_users",
    ]
    assert all(path.read_bytes() == (tmp_path / "other" / path.name).read_bytes() for path in paths)

    found = Indexes.open(tmp_path / "one")
    items = pl.read_parquet(tmp_path / "one" / "items.parquet")["item_id"].to_list()
    tags = dict(pl.read_parquet(events / "items.parquet").select("item_id", "tags").rows())
    train = json.loads((tmp_path / "one" / "slices.json").read_text())["validation"]
    log = read_log(tmp_path / "one").filter(pl.col("time") < train, pl.col("click") == 1)
    clicks = dict(log["item"].value_counts().rows())
    tagged = [number for number, item in enumerate(items) if item is not None and "3" in tags[item]]
    listed = found.items_of("tags", "3").tolist()
    assert listed == sorted(tagged, key=lambda number: (-clicks.get(number, 0), number))
    assert found.attributes_of(listed[0])["item_id"] == items[listed[0]]
