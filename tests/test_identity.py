from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import identity
from pipeline.lake import InputError

INTEGERS = [pl.Int8, pl.Int32, pl.Int64, pl.UInt16]


@pytest.mark.parametrize("dtype", [*INTEGERS, pl.Float32, pl.Float64, pl.String, pl.Categorical])
def test_a_value_has_the_same_fid_whatever_its_type(dtype):
    if dtype in (pl.String, pl.Categorical):
        values = pl.Series(["7", "0", None, "100"], dtype=dtype)
    else:
        values = pl.Series([7, 0, None, 100], dtype=dtype)
    expected = identity.fids("age", pl.Series(["7", "0", None, "100"]))
    assert identity.fids("age", values).to_list() == expected.to_list()
    assert identity.fids("age", pl.Series([np.int32(7)])).item() == expected[0]


def test_fids_are_stable_over_versions():
    assert identity.fids("item_id", pl.Series([1, 2])).to_list() == [3925188849151861972, 3925367983119030667]


def test_floats_keep_their_fractions_and_nan_is_missing():
    assert identity.canonical(pl.Series([1.5, 2.0, float("nan"), None, 0.1])).to_list() == [
        "1.5",
        "2",
        None,
        None,
        "0.1",
    ]


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=20))
def test_a_fid_is_a_slot_and_a_value(field, values):
    found = identity.fids(field, pl.Series(values, dtype=pl.String)).to_list()
    assert all(fid >= 0 and fid >> identity.VALUE_BITS == identity.slot(field) for fid in found)
    assert len(set(found)) == len(set(values))


def test_a_value_has_another_fid_in_another_field():
    values = pl.Series(["7"])
    assert identity.fids("age", values).item() != identity.fids("place", values).item()


def test_clashing_slots_are_an_input_error():
    names = [f"column{number}" for number in range(2_000)]
    with pytest.raises(InputError, match="share a feature-id slot; rename"):
        identity.check_slots(names)
    identity.check_slots(["user_id", "item_id", "user_id"])


def test_admission_eviction_and_order():
    seen = pl.DataFrame(
        {
            "value": ["often", "rare", "old", "twice", "twice", None, "also"],
            "count": [5, 1, 9, 1, 1, 50, 5],
            "last_seen": [100, 100, 10, 60, 20, 100, 100],
        }
    )
    vocabulary = identity.fit("tag", seen, admit_after=2, evict_before=50)
    first, second = sorted(["often", "also"], key=lambda value: identity.fids("tag", pl.Series([value])).item())
    assert vocabulary.table["value"].to_list() == [first, second, "twice"]
    assert vocabulary.table["code"].to_list() == [1, 2, 3]
    assert vocabulary.table["count"].to_list() == [5, 5, 2]
    assert vocabulary.table["last_seen"].to_list() == [100, 100, 60]
    assert vocabulary.metrics() == {"vocabulary_tag": 4, "rare_tag": 1, "evicted_tag": 1, "collisions_tag": 0}
    codes = vocabulary.encode(pl.Series(["twice", None, "rare", "never", first, "old"]))
    assert codes.to_list() == [3, 0, 0, 0, 1, 0]
    assert codes.dtype == pl.Int32


def test_an_empty_vocabulary_knows_nothing():
    empty = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64, "last_seen": pl.Int64})
    vocabulary = identity.fit("tag", empty, admit_after=1, evict_before=0)
    assert vocabulary.size == 1
    assert vocabulary.encode(pl.Series(["a", None])).to_list() == [0, 0]


def test_a_collision_is_counted_and_shares_a_code(monkeypatch):
    monkeypatch.setattr(identity, "VALUE_BITS", 1)
    seen = pl.DataFrame({"value": ["a", "b", "c"], "count": [3, 2, 1], "last_seen": [1, 1, 1]})
    vocabulary = identity.fit("tag", seen, admit_after=1, evict_before=0)
    assert vocabulary.collisions == 3 - vocabulary.table.height > 0
    assert vocabulary.table["count"].sum() == 6
    assert (vocabulary.encode(seen["value"]) > 0).all()


def test_distinct_values_and_their_places():
    for dtype in (pl.String, pl.Categorical):
        once, places = identity.distinct(pl.Series("tag", ["b", None, "a", "b"], dtype=dtype))
        assert (once.name, once.to_list()) == ("tag", ["b", "a"])
        assert (places.dtype, places.tolist()) == (np.int32, [0, -1, 1, 0])
    once, places = identity.distinct(pl.Series([None, None]))
    assert (once.drop_nulls().to_list(), places.tolist()) == ([], [-1, -1])


@given(st.lists(st.none() | st.sampled_from([1.0, 1.5, float("nan"), -0.0, 0.0]), max_size=12))
def test_codes_are_those_of_the_values_one_by_one(values):
    column = pl.Series(values, dtype=pl.Float64)
    seen = pl.DataFrame({"value": column}).with_columns(count=1, last_seen=1)
    vocabulary = identity.fit("age", seen, admit_after=2, evict_before=0)
    codes = vocabulary.encode(column).to_list()
    assert codes == [vocabulary.encode(pl.Series([value], dtype=pl.Float64)).item() for value in values]
    texts = identity.canonical(column).to_list()
    assert [code > 0 for code in codes] == [text is not None and texts.count(text) >= 2 for text in texts]


def test_too_many_values_are_an_input_error_before_any_is_hashed(monkeypatch):
    monkeypatch.setattr(identity, "MOST_DISTINCT", 1_000)
    monkeypatch.setattr(identity, "_fids", None)
    seen = pl.DataFrame({"value": np.arange(5_000)}).with_columns(count=1, last_seen=1)
    with pytest.raises(InputError, match=r"column 'request_id' has about [45],\d{3} different values, .* 1,000"):
        identity.fit("request_id", seen, admit_after=2, evict_before=0)
    monkeypatch.undo()
    monkeypatch.setattr(identity, "MOST_DISTINCT", 1_000)
    repeated = seen.with_columns(pl.col("value") % 500)
    assert identity.fit("request_id", repeated, admit_after=2, evict_before=0).table.height == 500


def test_appended_values_change_no_key():
    values = pl.Series(["c", None, "a"])
    assert identity.keys(pl.concat([values, pl.Series(["b", "a"])])).to_list() == [1, 0, 2, 3, 2]
    assert identity.keys(pl.Series([None, None], dtype=pl.String)).to_list() == [0, 0]


def test_keys_tell_every_value_apart():
    assert identity.keys(pl.Series(["b", None, "a", "b"])).to_list() == [1, 0, 2, 1]
    assert identity.keys(pl.Series([10, 9, None])).to_list() == [1, 2, 0]
