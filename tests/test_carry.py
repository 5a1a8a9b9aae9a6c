"""A model goes on under another vocabulary: rows on paper, and scores that stay what they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import latest
from hypothesis import given
from hypothesis import strategies as st

from models.rankers.flat_dnn import FlatDNN
from models.schema import Field, Number, Schema
from pipeline.config import Fine
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking import fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import MEMORY, Champion, Known, codes_of, remember
from pipeline.ranking.merged import Merged
from pipeline.ranking.optimisers import Optimisers


def known(**ids):
    """A schema of `user_id`, `hour` (no vocabulary) and `item_id`."""
    sizes = {"user_id": 1 + len(ids["user_id"]), "hour": 3, "item_id": 1 + len(ids["item_id"])}
    arrays = {name: np.array(values, np.int64) for name, values in ids.items()}
    return Known(10, 20, tuple(sizes.items()), ("home",), ("age",), arrays)


BEFORE = known(user_id=[71, 72], item_id=[5, 6, 7])
AFTER = known(user_id=[72, 73, 71], item_id=[7, 9])


def test_rows_go_where_their_ids_are_now_and_new_ones_begin_as_unknown():
    """Before: users at 0 … 2, hours at 3 … 5, items at 6 … 9, each field's unknown one first."""
    assert AFTER.rows(BEFORE).tolist() == [0, 2, 0, 1, 3, 4, 5, 6, 9, 6]
    assert AFTER.moved(BEFORE) == {"ids_carried": 3, "ids_entered": 2, "ids_left": 2}


@given(st.lists(st.integers(0, 30), unique=True), st.lists(st.integers(0, 30), unique=True))
def test_codes_against_a_dictionary(now, before):
    codes = {one: place for place, one in enumerate(before, start=1)}
    found = codes_of(np.array(now, np.int64), np.array(before, np.int64))
    assert found.tolist() == [codes.get(one, 0) for one in now]


def test_it_is_read_as_it_was_written(tmp_path):
    remember(BEFORE, {"weight.step": torch.tensor(3)}, tmp_path)
    read = Known.read(tmp_path)
    assert replace(read, ids={}) == replace(BEFORE, ids={})
    assert {name: ids.tolist() for name, ids in read.ids.items()} == {"user_id": [71, 72], "item_id": [5, 6, 7]}
    with pytest.raises(InputError, match="train it again"):
        Known.read(tmp_path / "nowhere")
    (tmp_path / MEMORY).unlink()
    with pytest.raises(InputError, match=f"no {MEMORY}"):
        Known.read(tmp_path)


def schema_of(of):
    fields = tuple(Field(name, size, "user" if name == "user_id" else "item") for name, size in of.fields)
    return Schema(fields, (Number("age", "user"),), (), ("click",), of.domains)


def batch_of(fields):
    count = len(fields)
    return {"fields": torch.tensor(fields), "numbers": torch.zeros(count, 1), "domain": torch.zeros(count, dtype=int)}


def test_a_carried_model_scores_what_it_scored():
    torch.manual_seed(0)
    model = FlatDNN(schema_of(BEFORE), width=4, hidden=(8,)).eval()
    torch.nn.init.normal_(model.inputs.embed.table.weight)
    later = FlatDNN(schema_of(AFTER), width=4, hidden=(8,)).eval()
    Champion(model.state_dict(), BEFORE, {}).into(later, AFTER)
    rows = {"known": ([1, 4, 9], [3, 5, 8]), "a new user": ([0, 4, 9], [2, 5, 8]), "a new item": ([2, 3, 6], [1, 4, 9])}
    for before, after in rows.values():
        torch.testing.assert_close(later(batch_of([after])), model(batch_of([before])))


@pytest.mark.parametrize("table_optimiser", ["adamw", "adagrad"])
def test_what_the_optimisers_remember_goes_where_the_weights_do(table_optimiser):
    """A row is remembered under its id: a user of before is, a new one begins as the unknown one."""
    torch.manual_seed(0)
    model = FlatDNN(schema_of(BEFORE), width=4, hidden=(8,))
    rates = {"learning_rate": 0.01, "weight_decay": 0.0, "embedding_decay": 0.1, "table_learning_rate": 0.05}
    optimisers = Optimisers(model, table_optimiser=table_optimiser, **rates)
    for rows in ([[1, 4, 9], [2, 5, 8]], [[0, 3, 6]], [[1, 4, 7]]):
        model.zero_grad()
        model(batch_of(rows)).sum().backward()
        optimisers.step(1.0, clip=5.0)
    optimisers.close()
    before = optimisers.tensors()
    later = FlatDNN(schema_of(AFTER), width=4, hidden=(8,))
    memory = Champion(model.state_dict(), BEFORE, before).into(later, AFTER)
    of_rows = "inputs.embed.table.weight." + {"adamw": "moments", "adagrad": "squares"}[table_optimiser]
    assert memory.keys() == before.keys()
    assert torch.equal(memory[of_rows], before[of_rows][AFTER.rows(BEFORE)])
    assert memory[of_rows][2].equal(memory[of_rows][0])
    gone_on = Optimisers(later, table_optimiser=table_optimiser, **rates)
    gone_on.restore(memory)
    assert all(one.equal(memory[name]) for name, one in gone_on.tensors().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"domains": ("home", "live")}, "the domains are not the champion's (live)"),
        ({"numbers": ("age", "price")}, "the numbers are not the champion's (price)"),
        ({"fields": (("user_id", 4), ("item_id", 3), ("hour", 3))}, "the fields are not the champion's (user_id"),
    ],
)
def test_another_schema_is_named(change, told):
    with pytest.raises(InputError) as error:
        replace(AFTER, **change).rows(BEFORE)
    assert told in str(error.value)


def test_a_model_of_another_shape_is_named():
    model = FlatDNN(schema_of(BEFORE), width=4, hidden=(8,))
    with pytest.raises(InputError, match=r"net\.0\.bias is 16, the champion's 8"):
        Champion(model.state_dict(), BEFORE, {}).into(FlatDNN(schema_of(AFTER), width=4, hidden=(16,)), AFTER)


QUICK = Fine(model="flat_dnn", epochs=1, keep=20, candidates=5, trials=2, batch_size=128, learning_rate=0.0005)


def test_a_ranker_goes_on_from_its_champion_on_the_rows_since(small_run, tmp_path):
    folders = latest(small_run)
    features, recall = folders["features"], folders["recall_validation"]
    store = FeatureStore.open(features)

    def train(name, settings=QUICK, champion=None):
        (tmp_path / name).mkdir()
        return fine.train(
            features, recall, tmp_path / name, settings=settings, seed=1, log=lambda *_: None, champion=champion
        )

    first = train("first")
    middle = int(np.median(store.log("train").time))
    told = Known.read(tmp_path / "first")
    replace(told, until=middle).write(tmp_path / "first")
    second = train("second", champion=tmp_path / "first")
    assert second["training_impressions"] == (store.log("train").time >= middle).sum() < first["training_impressions"]
    assert second["ids_entered"] == second["ids_left"] == 0
    again = train("again", champion=tmp_path / "first")
    assert again == second
    weights = [fine.load(tmp_path / name).model.state_dict()["model.net.0.weight"] for name in ("first", "second")]
    moved, size = (weights[1] - weights[0]).norm(), weights[0].norm()
    assert 0 < moved < 0.2 * size

    rows = store.log("test").take(slice(0, 50))
    carried = fine.carried(tmp_path / "first", store)
    encoder = Encoder(store)
    np.testing.assert_allclose(
        fine.probabilities(carried.model, encoder, rows),
        fine.probabilities(fine.load(tmp_path / "first").model, encoder, rows),
        atol=1e-6,
    )
    assert len(Merged.open(recall)) > 0

    with pytest.raises(InputError, match="the champion is flat_dnn"):
        train("other", replace(QUICK, model="mmoe"), tmp_path / "first")
    told.write(tmp_path / "first")
    with pytest.raises(InputError, match="has nothing new"):
        train("nothing", champion=tmp_path / "first")
