"""The gate before promotion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import latest

from pipeline.config import Fine
from pipeline.evaluation import promotion
from pipeline.features.store import FeatureStore
from pipeline.ranking import fine


def test_surprise_on_paper():
    given = promotion.surprise(np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.25, 1.0], np.float32))
    assert given.tolist() == pytest.approx([np.log(2), -np.log(0.75), -np.log(promotion.SMALLEST)])


@pytest.fixture(scope="module")
def rankers(small_run, tmp_path_factory):
    """One ranker that was hardly trained, and one that was."""
    folders, root = latest(small_run), tmp_path_factory.mktemp("rankers")
    for name, rate in (("poor", 1e-6), ("good", 0.005)):
        (root / name).mkdir()
        fine.train(
            folders["features"],
            folders["recall_validation"],
            root / name,
            settings=Fine(model="flat_dnn", epochs=1, candidates=5, trials=1, learning_rate=rate),
            seed=0,
            log=lambda *_: None,
        )
    return folders["features"], root


@pytest.mark.parametrize(("challenger", "champion", "promoted"), [("good", "poor", 1), ("poor", "good", 0)])
def test_only_what_is_better_is_promoted(rankers, tmp_path, challenger, champion, promoted):
    features, root = rankers
    told = promotion.contest(
        features, root / challenger, tmp_path, champion=root / champion, positive="click", resamples=200, seed=0
    )
    assert told["promoted"] == promoted
    assert told["gain"] == pytest.approx(told["log_loss_champion"] - told["log_loss_challenger"])
    assert told["gain_low"] < told["gain"] < told["gain_high"]
    assert json.loads((tmp_path / "gate.json").read_text()) == told


def test_nothing_beats_itself(rankers, tmp_path):
    features, root = rankers
    told = promotion.contest(
        features, root / "good", tmp_path, champion=root / "good", positive="click", resamples=50, seed=0
    )
    assert (told["gain"], told["gain_low"], told["gain_high"], told["promoted"]) == (0.0, 0.0, 0.0, 0)
    assert len(FeatureStore.open(features).log("test")) > 0
