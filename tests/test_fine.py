import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import latest

from models import RANKERS
from pipeline.config import Fine
from pipeline.features.store import FeatureStore
from pipeline.ranking import fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.fuse import ndcg
from pipeline.ranking.merged import Merged
from pipeline.ranking.trees import grow

QUICK = Fine(model="mmoe", epochs=1, keep=20, candidates=10, trials=3, batch_size=512, patience=1)


@pytest.fixture(scope="module")
def folders(small_run):
    return latest(small_run)


@pytest.fixture(scope="module")
def store(folders):
    return FeatureStore.open(folders["features"])


def test_the_trained_ranker_is_loaded_as_it_was_and_scores_what_it_says(folders, store, tmp_path):
    told = fine.train(
        folders["features"],
        folders["recall_validation"],
        tmp_path,
        settings=QUICK,
        seed=1,
        log=lambda metrics, epoch: None,
    )
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
        fine.train(
            folders["features"],
            folders["recall_validation"],
            tmp_path / name,
            settings=QUICK,
            seed=3,
            log=lambda metrics, epoch: None,
        )
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


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
    grow(grown, encoder, store.log("train"), seed=3)
    columns = grown.columns(encoder(store.log("test")))
    assert torch.equal(ranker.model.trees(columns), grown.trees(columns))
    assert ranker.model.weights.any(dim=-1).any(dim=-1).all()


def test_impressions_and_candidates_mask_each_others_labels(folders, store):
    rows = fine._impressions(store.log("validation"))
    assert np.isnan(rows.labels[:, -1]).all()
    assert not np.isnan(rows.labels[:, :-1]).any()
    merged = Merged.open(folders["recall_validation"])
    rows = fine._candidates(store, merged, QUICK, seed=0)
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
