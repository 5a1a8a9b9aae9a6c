"""Records and the batches shuffled out of a file of them: those of the encoder, byte for byte, in an order of which
little is in memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from event_tables import CONTRACT, FEATURES, write_events

from models import RANKERS
from models.objective import objective
from pipeline.config import Crosses, Split
from pipeline.evaluation.metrics import auc
from pipeline.features.build import build
from pipeline.features.store import FeatureStore
from pipeline.ranking.batches import Encoder, in_order
from pipeline.ranking.fit import fit
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import Stored, shuffled

SETTINGS = replace(FEATURES, parts=2, crosses=Crosses(pairs=("segment*category",)), admit_after=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "features").mkdir()
    events = write_events(root / "events", events=900, users=60, items=40, days=5)
    build(events, root / "features", features=SETTINGS, contract=CONTRACT, split=Split(1.5, 1))
    return FeatureStore.open(root / "features")


@pytest.fixture(scope="module")
def encoder(store):
    return Encoder(store)


@pytest.fixture(scope="module")
def log(store):
    return store.log("train")


@pytest.fixture(scope="module")
def beside(log):
    """A weight, and two numbers by label."""
    random = np.random.default_rng(0)
    labels = log.labels.shape[1]
    return {"weight": random.random(len(log), np.float32), "known": random.random((len(log), labels), np.float32)}


@pytest.fixture(scope="module")
def stored(store, encoder, log, beside):
    def part(begin):
        index = slice(begin, begin + 100)
        return encoder.records(log.take(index), {name: column[index] for name, column in beside.items()})

    return Stored.write(store.folder / "records.bin", map(part, range(0, len(log), 100)))


def seen(batches) -> Counter:
    rows = []
    for batch in batches:
        columns = (batch["fields"], batch["numbers"], batch["labels"], batch["user"][:, None])
        rows += map(tuple, torch.cat([column.double() for column in columns], dim=1).tolist())
    return Counter(rows)


def test_an_epoch_has_every_row_once(encoder, stored, log):
    batches = list(shuffled(encoder, stored, size=64, seed=0, block=16, mixed=5)(1))
    assert len(stored) == len(log)
    assert seen(batches) == seen([encoder(log)])
    assert [len(batch["user"]) for batch in batches] == [64] * (len(log) // 64) + [len(log) % 64]
    histories = sum(len(batch["clicked.row"]) for batch in batches)
    assert histories == log.lengths["clicked"].sum()


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize(("block", "mixed"), [(16, 5), (7, 11), (10_000, 3)])
def test_batches_are_those_of_rows_in_memory_byte_for_byte(encoder, stored, log, beside, size, block, mixed):
    """A twin that holds all rows: blocks in random order, windows of them shuffled, what is left goes to the next."""
    blocks = [np.arange(begin, min(begin + block, len(log))) for begin in range(0, len(log), block)]
    for number in (1, 2):
        random = np.random.default_rng([3, number])
        order, left, expected = random.permutation(len(blocks)), np.empty(0, np.int64), []
        for place in range(0, len(order), mixed):
            window = np.concatenate([left, *(blocks[one] for one in order[place : place + mixed])])
            window = window[random.permutation(len(window))]
            whole = len(window) if place + mixed >= len(order) else len(window) // size * size
            expected += [window[begin : begin + size] for begin in range(0, whole, size)]
            left = window[whole:]
        found = list(shuffled(encoder, stored, size=size, seed=3, block=block, mixed=mixed)(number))
        assert len(found) == len(expected)
        for batch, index in zip(found, expected, strict=True):
            further = {name: torch.from_numpy(column[index]) for name, column in beside.items()}
            whole = {**encoder(log, torch.from_numpy(index)), **further}
            assert list(batch) == list(whole)
            for name, column in whole.items():
                assert batch[name].dtype == column.dtype
                assert batch[name].numpy().tobytes() == column.numpy().tobytes(), name
                assert batch[name].is_contiguous()


def test_few_rows_are_shuffled_as_a_whole(encoder, stored, log):
    """By default a window holds more rows than there are: pairs of successive rows do not stay near each other."""
    user = np.concatenate([batch["user"].numpy() for batch in shuffled(encoder, stored, size=50, seed=0)(1)])
    assert sorted(user) == sorted(log.user)
    assert (user[1:] == user[:-1]).mean() < 0.1


def test_seed_and_epoch_alone_decide_the_order(encoder, stored):
    def users(seed, number):
        epoch = shuffled(encoder, stored, size=50, seed=seed, block=16, mixed=3)
        return np.concatenate([batch["user"].numpy() for batch in epoch(number)])

    np.testing.assert_array_equal(users(0, 1), users(0, 1))
    assert (users(0, 1) != users(0, 2)).any()
    assert (users(0, 1) != users(1, 1)).any()


def test_a_batch_mixes_days(encoder, stored, log):
    first = next(shuffled(encoder, stored, size=100, seed=0, block=16, mixed=20)(1))
    assert len(first["user"].unique()) > 30
    day = {tuple(row): time // 86_400_000_000 for row, time in zip(log.numbers.tolist(), log.time, strict=True)}
    assert len({day[tuple(row)] for row in first["numbers"].tolist()}) > 2


def test_training_reads_it(store, encoder, stored, log):
    """Logistic regression learns the clicks that it is shown: inputs and labels of a row belong together."""
    torch.manual_seed(0)
    model = RANKERS["lr"](store.schema)
    losses = []

    def validate(model):
        scores = torch.cat([model(batch)[:, 0] for batch in in_order(encoder, log, size=100)])
        return {"auc": auc(log.labels[:, 0], scores.detach().numpy())}

    fitted = fit(
        model,
        shuffled(encoder, stored, size=64, seed=0, block=16, mixed=5),
        lambda model, batch: objective(model, batch, masked_bce),
        validate,
        steps=-(-len(log) // 64),
        epochs=4,
        learning_rate=0.02,
        monitor="auc",
        patience=4,
        log=lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    assert losses[-1] < losses[0]
    assert fitted.metrics["auc"] > 0.6


def test_all_records_are_read_in_order(encoder, stored, log):
    parts = list(stored.parts(70))
    assert [len(part) for part in parts[:-1]] == [70] * (len(log) // 70)
    assert torch.equal(torch.cat([encoder.batch(part)["fields"] for part in parts]), encoder(log)["fields"])


def test_a_file_that_was_cut_off_is_named(encoder, stored, tmp_path):
    short = Stored(tmp_path / "short.bin", stored.kind)
    short.path.write_bytes(stored.path.read_bytes())
    epoch = shuffled(encoder, short, size=64, seed=0)
    short.path.write_bytes(stored.path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"short\.bin: ends in the middle of a block"):
        list(epoch(1))


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to write"):
        Stored.write(tmp_path / "none.bin", [])


def test_a_row_in_an_unknown_domain_is_not_recorded(encoder, log):
    with pytest.raises(ValueError, match="column domain: 3 is the number of no domain"):
        encoder.records(replace(log, domain=np.full_like(log.domain, 3)))
