import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import latest
from day_files import change_log

from models import RANKERS
from models.schema import Schema
from pipeline.config import Fine, Loss
from pipeline.features.store import FeatureStore
from pipeline.ranking import chain, fine, training
from pipeline.ranking.batches import Encoder, in_order
from pipeline.ranking.fuse import ndcg
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.merged import Merged
from pipeline.ranking.trees import grow

QUICK = Fine(model="mmoe", epochs=1, keep=20, candidates=10, trials=3, batch_size=512, patience=1)


@pytest.fixture(scope="module")
def folders(small_run):
    return latest(small_run)


@pytest.fixture(scope="module")
def store(folders):
    return FeatureStore.open(folders["features"])


def train(folders, out, loss=QUICK.loss, quick=QUICK):
    features, recall = folders["features"], folders["recall_validation"]
    settings = replace(quick, loss=loss)
    return fine.train(features, recall, out, settings=settings, seed=1, log=lambda metrics, epoch: None)


def test_the_trained_ranker_is_loaded_as_it_was_and_scores_what_it_says(folders, store, tmp_path):
    told = train(folders, tmp_path)
    ranker, encoder = fine.load(tmp_path), Encoder(store)
    assert ranker.schema.labels == (*store.schema.labels, fine.RELEVANCE)
    assert ranker.weights.shape == (len(store.schema.domains), len(ranker.schema.labels) + 1)
    held_out = Merged.open(folders["recall_validation"])
    held_out = held_out.only(held_out.fold == "tune")
    scores = fine.probabilities(ranker.model, encoder, held_out.rows(store))
    assert ((scores > 0) & (scores < 1)).all()
    fused = ranker.fuse(scores, held_out)
    value = ndcg(fused, held_out.request, held_out.positive, held_out.positives, length=QUICK.keep).mean()
    assert value == pytest.approx(told["validation_ndcg"], rel=1e-4)
    assert told["training_impressions"] == len(store.log("train"))
    assert told["training_candidates"] > 0


def test_equal_seeds_train_equal_weights(folders, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train(folders, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_killed_and_started_again_it_ends_with_the_same_weights(folders, tmp_path):
    features, recall = folders["features"], folders["recall_validation"]
    settings = replace(QUICK, epochs=2, patience=2)
    logs = {"whole": [], "resumed": []}

    def begin(name, log, **more):
        (tmp_path / name).mkdir(exist_ok=True)
        return fine.train(features, recall, tmp_path / name, settings=settings, seed=1, log=log, **more)

    def killed(metrics, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    begin("whole", lambda *told: logs["whole"].append(told))
    with pytest.raises(KeyboardInterrupt):
        begin("resumed", killed, checkpoints=tmp_path / "checkpoints")
    told = begin("resumed", lambda *told: logs["resumed"].append(told), checkpoints=tmp_path / "checkpoints")
    assert logs["resumed"] == logs["whole"]
    assert len(logs["whole"]) == 2
    assert told["validation_auc_click"] == max(metrics["auc_click"] for metrics, _ in logs["whole"])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in logs)
    assert first == second


def test_two_processes_train_what_one_does(folders, tmp_path):
    features, recall = folders["features"], folders["recall_validation"]
    told, logs = {}, {1: [], 2: []}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        told[count] = fine.train(
            features,
            recall,
            tmp_path / str(count),
            settings=replace(QUICK, options={"gate_dropout": 0.0}, epochs=2, processes=count),
            seed=1,
            log=lambda metrics, epoch, count=count: logs[count].append((epoch, metrics["loss"])),
            checkpoints=tmp_path / f"checkpoints-{count}",
        )
    for (epoch, loss), (other_epoch, other) in zip(*logs.values(), strict=True):
        assert (epoch, loss) == (other_epoch, pytest.approx(other, rel=1e-3))
    assert told[2]["validation_auc_click"] == pytest.approx(told[1]["validation_auc_click"], abs=0.005)
    assert told[2]["parameters"] == told[1]["parameters"]
    one, two = (fine.load(tmp_path / str(count)).model.state_dict() for count in (1, 2))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "checkpoints-1", "checkpoints-2"]


def test_boosted_trees_are_grown_before_training_and_kept(folders, store, tmp_path):
    fine.train(
        folders["features"],
        folders["recall_validation"],
        tmp_path,
        settings=replace(QUICK, model="gbdt_lr", options={"trees": 5}),
        seed=3,
        log=lambda metrics, epoch: None,
    )
    ranker, encoder = fine.load(tmp_path), Encoder(store)
    grown = RANKERS["gbdt_lr"](ranker.schema, trees=5)
    grow(grown, in_order(encoder, store.log("train"), size=1_000), seed=3)
    columns = grown.columns(encoder(store.log("test")))
    assert torch.equal(ranker.model.model.trees(columns), grown.trees(columns))
    assert ranker.model.model.weights.any(dim=-1).any(dim=-1).all()


def test_impressions_and_candidates_mask_each_others_labels(folders, store):
    rows = training.unlabelled(store.log("validation"))
    assert np.isnan(rows.labels[:, -1]).all()
    assert not np.isnan(rows.labels[:, :-1]).any()
    merged = Merged.open(folders["recall_validation"])
    rows = training.candidates(store, merged, "")
    assert np.isnan(rows.labels[:, :-1]).all()
    assert rows.labels[:, -1].sum() == merged.positive.sum()


def test_a_folder_holds_no_pickle(folders):
    files = {path.suffix for path in folders["fine"].iterdir()}
    assert files == {".safetensors", ".json"}
    settings = json.loads((folders["fine"] / "settings.json").read_text())
    assert settings["model"] in RANKERS


def test_scoring_nothing_gives_nothing(folders, store):
    ranker = fine.load(folders["fine"])
    none = store.log("test").take(slice(0, 0))
    assert fine.probabilities(ranker.model, Encoder(store), none).shape == (0, len(ranker.schema.labels))


def test_a_row_scores_alone_as_in_company(folders, store):
    ranker, encoder = fine.load(folders["fine"]), Encoder(store)
    rows = store.log("test").take(slice(0, 40))
    together = fine.probabilities(ranker.model, encoder, rows)
    alone = np.concatenate(
        [fine.probabilities(ranker.model, encoder, rows.take(slice(one, one + 1))) for one in range(len(rows))]
    )
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert torch.is_inference_mode_enabled() is False


def test_all_losses_together_train_a_ranker_whose_mean_is_right(folders, store, tmp_path):
    told = train(folders, tmp_path, Loss(ranking="user", negative_rate=0.3, repeat_weight=1.0))
    ranker, log = fine.load(tmp_path), store.log("train")
    positive = (log.labels == 1).any(axis=1)
    assert positive.sum() < told["training_impressions"] < positive.sum() + 0.35 * (~positive).sum()
    assert told["negatives_gradient"] > told["negatives_gradient_without_ranking"] > 0
    distil = training.first_requests(folders["recall_validation"], "distil", QUICK.candidate_requests)
    shown = store.log("validation")
    shown = shown.take(~np.isin(shown.user, distil.user))
    scores = fine.probabilities(ranker.model, Encoder(store), shown)
    np.testing.assert_allclose(scores[:, :-1].sum(axis=0), shown.labels.sum(axis=0), rtol=1e-3)
    assert ranker.model.shift[:-1].all()
    assert ranker.model.shift[-1] == 0


def test_candidates_are_not_sampled(folders, tmp_path):
    parts = {}
    for rate in (1.0, 0.2):
        (tmp_path / str(rate)).mkdir()
        parts[rate] = train(folders, tmp_path / str(rate), Loss(negative_rate=rate))
    assert parts[1.0]["training_candidates"] == parts[0.2]["training_candidates"]
    assert parts[1.0]["training_impressions"] > 1.5 * parts[0.2]["training_impressions"]


@pytest.fixture(scope="module")
def watched(folders, tmp_path_factory):
    """The run's features with seconds watched that follow from the domain: 5 in the first, 10 in the next, and so on;
    of every ninth impression they are unknown."""
    folder = tmp_path_factory.mktemp("watched") / "features"

    def watch(day: pl.DataFrame) -> pl.DataFrame:
        seconds = pl.Series("watch", 5 * (1 + day["domain"].to_numpy()), pl.Float32)
        return day.with_columns(seconds.set(pl.Series(np.arange(day.height) % 9 == 0), None))

    change_log(folders["features"], folder, watch)
    schema = Schema.from_json((folder / "schema.json").read_text())
    (folder / "schema.json").write_text(replace(schema, durations=("watch",)).to_json())
    return {**folders, "features": folder}


def test_the_seconds_watched_are_one_more_output(watched, tmp_path):
    longer = replace(QUICK, model="flat_dnn", epochs=2, patience=2, batch_size=64, learning_rate=0.005)
    told = train(watched, tmp_path, Loss(watch_time="watch"), longer)
    ranker, store = fine.load(tmp_path), FeatureStore.open(watched["features"])
    assert ranker.schema.labels == (*store.schema.labels, "watch", fine.RELEVANCE)
    assert told["validation_ratio_watch"] == pytest.approx(1, abs=0.3)
    impressions = chain.predict(store, Encoder(store), ranker.model, ranker.schema, ranker.delays)
    assert "score_relevance" not in impressions.column_names
    expected = impressions["score_watch"].to_numpy()
    logits = fine.logits(ranker.model, Encoder(store), store.log("test")).numpy()
    np.testing.assert_allclose(expected, np.exp(logits[:, ranker.schema.labels.index("watch")]), rtol=1e-3)
    metrics = chain.watch_metrics(impressions, ranker.schema)
    assert metrics["ratio_watch"] == pytest.approx(1, abs=0.3)
    assert metrics["spearman_watch"] > 0.3
    assert expected.max() <= 25.001


def test_seconds_are_fused_as_hours():
    schema = Schema((), (), (), ("click", "watch"), ("home",), durations=("watch",))
    odds = np.array([[0.5, 36 / 37], [0.1, 1.0]], np.float32)
    np.testing.assert_allclose(fine.with_durations(odds, schema, fine.HOUR)[0], [0.5, 0.01], rtol=1e-4)
    assert np.isfinite(fine.with_durations(odds, schema)).all()
    assert odds[0, 1] == np.float32(36 / 37)


def test_each_loss_is_off_by_default():
    assert fine.criterion_of(Loss(), ("click", "like", "relevance")) is masked_bce


def test_the_configured_criterion_on_paper():
    """Two users, each with a pair of logits 1 and 0. A rate of a half shifts the log's task, and relevance not."""
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    batch = {"labels": torch.tensor([[1.0, 1.0], [0.0, 0.0]] * 2), "user": torch.tensor([4, 4, 5, 5])}
    criterion = fine.criterion_of(Loss("user", ranking_weight=2.0, negative_rate=0.5), ("click", fine.RELEVANCE))
    losses = criterion(logits, batch)

    def cross_entropy(shift):
        return (np.log1p(np.exp(-1 - shift)) + np.log1p(np.exp(shift))) / 2

    pair = np.log1p(np.exp(-1))
    assert losses.tolist() == pytest.approx([cross_entropy(np.log(2)) + 2 * pair, cross_entropy(0) + 2 * pair])
