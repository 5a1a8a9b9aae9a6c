"""The search for settings: its space on paper, a study that is killed and goes on, pruning, and the command."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import optuna
import pytest
from conftest import CONFIGS, TINY, latest, recfunnel

from pipeline import config
from pipeline.config import Choice, Fine, Loss, Space, Tune
from pipeline.lake import InputError
from pipeline.ranking import search, tuning
from pipeline.tracking import client

SPACE = {
    "learning_rate": Space(0.001, 0.1, log=True),
    "epochs": Space(1, 9),
    "loss.ranking": Choice(("none", "user")),
    "options.hidden": Choice(([8], [16, 8])),
    "options.width": Space(4, 32, log=True),
}
START = Fine(model="flat_dnn", learning_rate=0.5, epochs=3)


def test_a_point_becomes_settings_and_settings_a_point():
    point = {"learning_rate": 0.01, "epochs": 7, "loss.ranking": "user", "options.hidden": [8], "options.width": 9}
    settings = search.settings_at(replace(START, options={"dropout": 0.1}), point)
    assert (settings.learning_rate, settings.epochs, settings.loss) == (0.01, 7, Loss(ranking="user"))
    assert settings.options == {"dropout": 0.1, "hidden": [8], "width": 9}
    near = search.nearest(START, SPACE)
    assert near == {
        "learning_rate": 0.1,
        "epochs": 3,
        "loss.ranking": '"none"',
        "options.hidden": "[8]",
        "options.width": 16,
    }
    own = replace(START, options={"hidden": (16, 8)})
    assert search.nearest(own, SPACE)["options.hidden"] == "[16, 8]"


def test_what_is_whole_is_drawn_whole():
    trial = optuna.trial.FixedTrial(search.nearest(START, SPACE))
    drawn = search.draw(trial, START, SPACE)
    assert drawn == {
        "learning_rate": 0.1,
        "epochs": 3,
        "loss.ranking": "none",
        "options.hidden": [8],
        "options.width": 16,
    }
    kinds = [type(trial.distributions[name]).__name__[:3] for name in ("learning_rate", "epochs", "options.width")]
    assert kinds == ["Flo", "Int", "Int"]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"options.depth": Space(1, 2)}, "tune.search: flat_dnn has no 'options.depth'; it has options.width"),
        ({"learning_rate": Space(0.0, 1.0)}, "learning_rate = 0.0: Input should be greater than 0"),
        ({"loss.ranking": Choice(("user", "item"))}, "loss.ranking = 'item'"),
    ],
)
def test_what_a_ranker_cannot_take_is_named(space, told):
    with pytest.raises(InputError) as error:
        search.check(START, space, "tune.search")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tune.search={patients={low=1, high=2}}", "'patients' cannot be searched; there are keep, epochs"),
        ("zoo.search={model={values=['lr']}}", "'model' cannot be searched"),
        ("tune.search={table_optimiser={low=1, high=2}}", "'table_optimiser' is no number"),
        ("tune.search={epochs={low=3, high=2}}", "low must not exceed high"),
        ("tune.search={epochs={low=0, high=2, log=true}}", "nor a log range reach 0"),
    ],
)
def test_a_mistake_in_the_space_is_named(override, told):
    with pytest.raises(InputError) as error:
        config.load(None, [override])
    assert told in str(error.value)


def peak(settings, report):
    """Validation is best at a learning rate of .02 and rises over three epochs."""
    best = 1 - abs(settings.learning_rate - 0.02)
    for epoch in (1, 2, 3):
        if not report({"auc_click": best - 0.1 / epoch}, epoch):
            return None
    return {"auc_click": best - 0.1 / 3}


def search_on(file, trials, judge=peak, unpruned=3):
    study = tuning.study(file, "one", Tune(unpruned=unpruned))
    space = {"learning_rate": Space(0.001, 0.1, log=True)}
    while len(tried := tuning.history(study)) < trials:
        tuning.try_next(study, START, space, judge, metric="auc_click", seed=7, log=lambda metrics, epoch: None)
    return tried


def test_the_study_finds_the_peak_and_gives_up_what_is_behind(tmp_path):
    tried = search_on(tmp_path / "tune.log", 20)
    assert tried[0].point == {"learning_rate": 0.1}
    best = tuning.best(tried)
    assert best.point["learning_rate"] == pytest.approx(0.02, abs=0.005)
    assert best.value == max(one.value for one in tried if one.value is not None)
    pruned = [one for one in tried if one.value is None]
    assert pruned
    assert min(one.number for one in pruned) >= 3
    assert {one.epochs for one in pruned} == {1}
    assert {one.epochs for one in tried if one.value is not None} == {3}


def test_killed_in_the_middle_of_a_trial_it_makes_the_same_trials(tmp_path):
    whole = search_on(tmp_path / "whole.log", 8)

    def killed_at(place):
        def judge(settings, report):
            killed_at.count += 1
            if killed_at.count == place:
                report({"auc_click": 0.1}, 1)
                raise KeyboardInterrupt
            return peak(settings, report)

        return judge

    for place in (1, 4):
        killed_at.count = 0
        with pytest.raises(KeyboardInterrupt):
            search_on(tmp_path / "killed.log", 8, killed_at(place))
    assert search_on(tmp_path / "killed.log", 8) == whole
    assert search_on(tmp_path / "killed.log", 8, killed_at(1)) == whole


def test_without_a_complete_trial_there_is_no_best():
    with pytest.raises(RuntimeError, match="lower the learning rates"):
        tuning.best([tuning.Tried(0, {}, None, 1)])


def test_the_settings_are_printed_as_they_are_read(tmp_path):
    settings = Fine(
        model="flat_dnn", learning_rate=1e-5, options={"hidden": [16, 8], "width": 9}, loss=Loss(ranking="user")
    )
    (tmp_path / "tuned.toml").write_text(tuning.as_toml(settings))
    assert config.load(tmp_path / "tuned.toml").fine == settings
    assert tomllib.loads(tuning.as_toml(Fine())) == {"fine": {}}


def test_a_trial_is_judged_on_validation_and_stopped_when_told(small_run):
    features = latest(small_run)["features"]
    settings = Fine(model="lr", epochs=2, patience=2)
    told = []

    def report(metrics, epoch):
        told.append((metrics["auc_click"], epoch))
        return True

    metrics = tuning.judge(features, settings, report, seed=0)
    assert metrics["auc_click"] == max(value for value, _ in told)
    assert [epoch for _, epoch in told] == [1, 2]
    assert tuning.judge(features, settings, lambda metrics, epoch: False, seed=0) is None
    assert tuning.judge(features, replace(settings, learning_rate=1e30), report, seed=0) is None


def test_the_command_tunes_prints_toml_and_goes_on(server, tmp_path):
    arguments = (
        "tune",
        CONFIGS / "small.toml",
        *TINY,
        "fine.model=lr",
        "tune.search={learning_rate={low=0.001, high=0.1}}",
    )
    out, errors = recfunnel(*arguments, "tune.trials=2", server=server, folder=tmp_path).communicate(timeout=180)
    assert out.count("trial 0") == out.count("trial 1") == 1, out + errors
    again, errors = recfunnel(*arguments, "tune.trials=3", server=server, folder=tmp_path).communicate(timeout=180)
    assert "trial 1" not in again, again + errors
    assert "trial 2" in again
    printed = again[again.index("[fine]") :]
    assert tomllib.loads(printed)["fine"]["model"] == "lr"
    names = [run.info.run_name for run in client(tmp_path / "data").search_runs(["1"])]
    assert sorted(name for name in names if name.startswith("trial")) == ["trial 0", "trial 1", "trial 2"]
