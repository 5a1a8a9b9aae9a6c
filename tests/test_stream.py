"""Records and the batches streamed from them: those of the encoder, byte for byte, in an order of which little is in
memory."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from event_tables import CONTRACT, FEATURES, write_events

from models import RANKERS
from models.objective import objective
from pipeline import lake
from pipeline.config import Crosses, Split
from pipeline.evaluation.metrics import auc
from pipeline.features.build import build
from pipeline.features.store import FeatureStore, Rows, row_groups
from pipeline.ranking.batches import Encoder, in_order, layout
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import recorded, rows_of, streamed

SETTINGS = replace(FEATURES, parts=2, crosses=Crosses(pairs=("segment*category",)), admit_after=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch, lake.stage(root, "features", "first").writing() as folder:
        patch.setattr("pipeline.features.facts.ROW_GROUP", 40)
        events = write_events(root / "events", events=900, users=60, items=40, days=5)
        build(events, folder, features=SETTINGS, contract=CONTRACT, split=Split(1.5, 1))
    return FeatureStore.open(root / "features-first")


def seen(batches) -> Counter:
    rows = []
    for batch in batches:
        columns = (batch["fields"], batch["numbers"], batch["labels"], batch["user"][:, None])
        rows += map(tuple, torch.cat([column.double() for column in columns], dim=1).tolist())
    return Counter(rows)


@pytest.mark.parametrize("slice_name", ["train", "validation", "test"])
def test_an_epoch_has_every_row_of_the_slice_once(store, slice_name):
    encoder, log = Encoder(store), store.log(slice_name)
    batches = list(streamed(store, encoder, slice_name, size=64, seed=0, block=16, mixed=5)(1))
    assert seen(batches) == seen([encoder(log)])
    assert [len(batch["user"]) for batch in batches] == [64] * (len(log) // 64) + [len(log) % 64]
    histories = sum(len(batch["clicked.row"]) for batch in batches)
    assert histories == log.lengths["clicked"].sum()


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize(("block", "mixed"), [(16, 5), (7, 11), (10_000, 3)])
def test_batches_are_those_of_rows_in_memory_byte_for_byte(store, size, block, mixed):
    """A twin that holds all rows: blocks in random order, windows of them shuffled, what is left goes to the next."""
    encoder = Encoder(store)
    rows = Rows.concatenate(list(rows_of(store, "train")))
    blocks = [np.arange(begin, min(begin + block, len(rows))) for begin in range(0, len(rows), block)]
    for number in (1, 2):
        random = np.random.default_rng([3, number])
        order, left, expected = random.permutation(len(blocks)), np.empty(0, np.int64), []
        for place in range(0, len(order), mixed):
            window = np.concatenate([left, *(blocks[one] for one in order[place : place + mixed])])
            window = window[random.permutation(len(window))]
            whole = len(window) if place + mixed >= len(order) else len(window) // size * size
            expected += [window[begin : begin + size] for begin in range(0, whole, size)]
            left = window[whole:]
        found = list(streamed(store, encoder, "train", size=size, seed=3, block=block, mixed=mixed)(number))
        assert len(found) == len(expected)
        for batch, index in zip(found, expected, strict=True):
            whole = encoder(rows, torch.from_numpy(index))
            assert list(batch) == list(whole)
            for name, column in whole.items():
                assert batch[name].dtype == column.dtype
                assert batch[name].numpy().tobytes() == column.numpy().tobytes(), name
                assert batch[name].is_contiguous()


def test_seed_and_epoch_alone_decide_the_order(store):
    def users(seed, number):
        epoch = streamed(store, Encoder(store), "train", size=50, seed=seed, block=16, mixed=3)
        return np.concatenate([batch["user"].numpy() for batch in epoch(number)])

    np.testing.assert_array_equal(users(0, 1), users(0, 1))
    assert (users(0, 1) != users(0, 2)).any()
    assert (users(0, 1) != users(1, 1)).any()


def test_a_batch_mixes_days(store):
    assert len(row_groups(store.folder)) > 20
    log = store.log("train")
    first = next(streamed(store, Encoder(store), "train", size=100, seed=0, block=16, mixed=20)(1))
    assert len(first["user"].unique()) > 30
    day = {tuple(row): time // 86_400_000_000 for row, time in zip(log.numbers.tolist(), log.time, strict=True)}
    assert len({day[tuple(row)] for row in first["numbers"].tolist()}) > 2


def test_training_reads_it(store):
    """Logistic regression learns the clicks that it is shown: inputs and labels of a row belong together."""
    torch.manual_seed(0)
    encoder, model = Encoder(store), RANKERS["lr"](store.schema)
    train = store.log("train")
    losses = []

    def validate(model):
        scores = torch.cat([model(batch)[:, 0] for batch in in_order(encoder, train, size=100)])
        return {"auc": auc(train.labels[:, 0], scores.detach().numpy())}

    fitted = fit(
        model,
        streamed(store, encoder, "train", size=64, seed=0, block=16, mixed=5),
        lambda model, batch: objective(model, batch, masked_bce),
        validate,
        steps=-(-len(train) // 64),
        epochs=4,
        learning_rate=0.02,
        monitor="auc",
        patience=4,
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    assert losses[-1] < losses[0]
    assert fitted.metrics["auc"] > 0.6


def test_records_are_written_once_and_those_of_other_features_go(store, tmp_path):
    shutil.copytree(store.folder, tmp_path / "features-first")
    here = replace(store, folder=tmp_path / "features-first")
    path = recorded(here, Encoder(here), "train")
    assert path.stat().st_size == len(here.log("train")) * layout(here.schema).itemsize
    written = path.stat().st_mtime_ns
    assert recorded(here, Encoder(here), "train").stat().st_mtime_ns == written
    assert recorded(here, Encoder(here), "test") != path
    lake.write_json(here.folder / lake.MANIFEST, {"fingerprint": "second", "files": {}})
    assert recorded(here, Encoder(here), "train") != path
    assert not path.exists()
    assert len(list(tmp_path.glob("records_test-*"))) == len(list(tmp_path.glob("records_train-*"))) == 1


def test_a_row_in_an_unknown_domain_is_not_recorded(store):
    log = store.log("test")
    with pytest.raises(ValueError, match="column domain: 3 is the number of no domain"):
        Encoder(store).records(replace(log, domain=np.full_like(log.domain, 3)))
