from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from event_tables import CONTRACT, FEATURES, write_events

from pipeline.config import Split
from pipeline.features.build import build
from pipeline.features.store import FeatureStore, row_groups
from pipeline.ranking.batches import Encoder
from pipeline.ranking.stream import streamed


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, root = tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.features.facts.ROW_GROUP", 40)
        events = write_events(root / "events", events=900, users=60, items=40, days=5)
        build(events, folder, features=replace(FEATURES, parts=2), contract=CONTRACT, split=Split(1.5, 1))
    return FeatureStore.open(folder)


def seen(batches) -> Counter:
    rows = []
    for batch in batches:
        columns = (batch["fields"], batch["numbers"], batch["labels"], batch["user"][:, None])
        rows += map(tuple, torch.cat([column.double() for column in columns], dim=1).tolist())
    return Counter(rows)


@pytest.mark.parametrize("slice_name", ["train", "validation", "test"])
def test_an_epoch_has_every_row_of_the_slice_once(store, slice_name):
    encoder, log = Encoder(store), store.log(slice_name)
    batches = list(streamed(store, encoder, slice_name, size=64, seed=0, mixed=3)(1))
    assert seen(batches) == seen([encoder(log)])
    assert [len(batch["user"]) for batch in batches] == [64] * (len(log) // 64) + [len(log) % 64]
    histories = sum(len(batch["clicked.row"]) for batch in batches)
    assert histories == log.lengths["clicked"].sum()


def test_seed_and_epoch_alone_decide_the_order(store):
    def users(seed, number):
        epoch = streamed(store, Encoder(store), "train", size=50, seed=seed, mixed=2)
        return np.concatenate([batch["user"].numpy() for batch in epoch(number)])

    np.testing.assert_array_equal(users(0, 1), users(0, 1))
    assert (users(0, 1) != users(0, 2)).any()
    assert (users(0, 1) != users(1, 1)).any()


def test_a_batch_mixes_row_groups(store):
    assert len(row_groups(store.folder)) > 20
    first = next(streamed(store, Encoder(store), "train", size=100, seed=0, mixed=8)(1))
    days = {time // 86_400_000_000 for time in store.log("train").time}
    assert len(days) > 2
    assert len(first["user"].unique()) > 30
