from pathlib import Path

import numpy as np
import pytest
import torch

from models.schema import Field, Schema, Sequence
from pipeline.features.store import FeatureStore, Recipe
from pipeline.ranking.batches import Encoder, in_order

MINUTE = 60_000_000

SCHEMA = Schema(
    fields=(
        Field("user_id", 3, "user"),
        Field("item_id", 4, "item"),
        Field("category", 3, "item"),
        Field("domain", 3, "context"),
    ),
    numbers=(),
    sequences=(Sequence("clicked", ("category", "item_id"), length=2, gaps=16),),
    labels=("click",),
    domains=("home", "video"),
)


@pytest.fixture
def store():
    """Users 1 and 2; items 1 to 3 in categories 1, 2, 2; user 1 clicked items 3, 1, 2 at minutes 0, 1 and 9."""
    return FeatureStore(
        folder=Path(),
        schema=SCHEMA,
        slices={},
        recipe=Recipe((), (), (), (), False, {"clicked": 2}, {}),
        users={"code_user_id": np.array([0, 2, 1])},
        items={
            "code_item_id": np.array([0, 1, 2, 3]),
            "code_category": np.array([0, 1, 2, 2]),
            "content": np.eye(4, 2, dtype=np.float32),
        },
        behaviours={
            "clicked": {
                "user": np.array([1, 1, 1], np.int32),
                "item": np.array([3, 1, 2], np.int32),
                "time": np.array([0, 1, 9]) * MINUTE,
            }
        },
        events={name: np.zeros(0, np.int64) for name in ("user", "item", "domain", "time", "shows")},
    )


@pytest.fixture
def rows(store):
    """User 1 at minutes 2 and 10, and user 2, who never clicked."""
    return store.rows(np.array([1, 2, 1]), np.array([2, 3, 1]), np.array([0, 1, 1]), np.array([2, 5, 10]) * MINUTE)


def test_a_batch_by_hand(store, rows):
    """Offsets in the fused table: users 0, items 3, categories 7, domains 10."""
    batch = Encoder(store)(rows)
    assert batch["fields"].tolist() == [[2, 5, 9, 11], [1, 6, 9, 12], [2, 4, 8, 12]]
    assert batch["domain"].tolist() == [0, 1, 1]
    assert batch["content"].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert batch["numbers"].shape == (3, 0)
    assert batch["labels"].isnan().all()


def test_a_history_is_packed_old_to_new_and_holds_only_what_came_before(store, rows):
    batch = Encoder(store)(rows)
    assert batch["clicked.row"].tolist() == [0, 0, 2, 2]
    assert batch["clicked.fields"].tolist() == [[9, 6], [8, 4], [8, 4], [9, 5]]
    assert batch["clicked.gap"].tolist() == [1, 1, 3, 1]


def test_gaps_are_counted_in_powers_of_two_minutes(store):
    passed = np.array([-5, 0, MINUTE - 1, MINUTE, 3 * MINUTE - 1, 3 * MINUTE, 1 << 50])
    one = np.ones(len(passed), np.int32)
    gap = Encoder(store)._histories["clicked"].pack(one.astype(np.int64), one, passed)[1]
    assert gap.tolist() == [0, 0, 0, 1, 1, 2, 15]


def test_a_batch_of_some_rows_equals_these_rows_of_the_whole(store, rows):
    encoder = Encoder(store)
    part = encoder(rows, torch.tensor([2]))
    whole = encoder(rows)
    assert torch.equal(part["fields"], whole["fields"][2:])
    assert torch.equal(part["clicked.fields"], whole["clicked.fields"][2:])
    assert part["clicked.row"].tolist() == [0, 0]


def test_no_rows_are_a_batch_too(store, rows):
    empty = Encoder(store)(rows, torch.zeros(0, dtype=torch.long))
    assert empty["fields"].shape == (0, 4)
    assert empty["clicked.fields"].shape == (0, 2)


def test_batches_come_in_order(store, rows):
    many = rows.take(np.arange(60) % 3)
    many.time[:] = np.arange(60)
    batches = list(in_order(Encoder(store), many, size=25))
    assert [len(batch["domain"]) for batch in batches] == [25, 25, 10]
    assert torch.equal(torch.cat([batch["fields"] for batch in batches]), Encoder(store)(many)["fields"])


def test_no_rows_are_scored_as_one_batch(store, rows):
    (batch,) = in_order(Encoder(store), rows.take(slice(0, 0)), size=7)
    assert batch["fields"].shape == (0, 4)


def test_rows_with_long_histories_come_in_smaller_batches(store, rows, monkeypatch):
    """Histories of 2, 0 and 2 events, over and over: so many events at most, but never no row."""
    encoder, many = Encoder(store), rows.take(np.arange(9) % 3)
    for most, sizes in ((5, [3, 3, 3]), (3, [2, 1] * 3), (1, [1] * 9), (100, [7, 2])):
        monkeypatch.setattr("pipeline.ranking.batches.EVENTS", most)
        batches = list(in_order(encoder, many, size=7))
        assert torch.equal(torch.cat([batch["fields"] for batch in batches]), encoder(many)["fields"])
        assert [len(batch["domain"]) for batch in batches] == sizes


@pytest.mark.parametrize("number", [-1, 2])
def test_an_unknown_domain_is_named_with_the_fix(store, number):
    one = np.ones(1, np.int64)
    rows = store.rows(one, one, one * number, one * MINUTE)
    with pytest.raises(ValueError, match=f"column domain: {number} is the number of no domain; score rows of home"):
        Encoder(store)(rows)
