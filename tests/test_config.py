from __future__ import annotations

from pathlib import Path

import pytest

from models import RANKERS
from pipeline.config import Config, KuaiRand, Simulator, load
from pipeline.lake import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "flows/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_under_its_own_name(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    assert config.root == Path("data") / path.stem


def test_the_defaults_are_the_small_run() -> None:
    assert load() == Config() == load(next(path for path in CONFIGS if path.stem == "small"))


def test_a_file_and_overrides_of_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[fine]\nmodel = "din"\nepochs = 2\n[source]\nkind = "simulator"\nusers = 10\n')
    config = load(path, ['fine.model="star"', "coarse.keep=7", 'recall.routes=["hot"]', "source.items=5"])
    assert (config.name, config.fine.model, config.fine.epochs) == ("mine", "star", 2)
    assert (config.coarse.keep, config.recall.routes) == (7, ("hot",))
    assert isinstance(config.source, Simulator)
    assert (config.source.users, config.source.items) == (10, 5)


def test_an_unquoted_word_is_a_string_and_sources_are_told_apart() -> None:
    assert load(None, ["fine.model=mmoe"]).fine.model == "mmoe"
    assert isinstance(load(None, ["source.kind=kuairand"]).source, KuaiRand)


def test_a_loss_is_chosen_by_overrides() -> None:
    loss = load(None, ["fine.loss.ranking=user", "fine.loss.negative_rate=0.5"]).fine.loss
    assert (loss.ranking, loss.ranking_weight, loss.negative_rate, loss.repeat_weight) == ("user", 1.0, 0.5, 0.0)


def test_to_dict_is_plain_json() -> None:
    assert load().to_dict()["recall"]["routes"] == ["two_tower", "item_cf", "hot", "fresh"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("fine.modle=star", "fine.modle"),
        ("fine.model=starr", f"'starr' is unknown; it is one of {', '.join(sorted(RANKERS))}"),
        ("fine.options.widht=8", "pepnet has no option 'widht'"),
        ("fine.options.schema=8", "pepnet has no option 'schema'"),
        ('features.matches=["catgory"]', "'catgory' is no column of features.item"),
        ("source.market.drifting=1.5", "less than or equal to 1"),
        ("source.market.history_days=120", "must be less than past_days"),
        ("machines.hosts=2", "several hosts need an address of this one"),
        ("fine.loss.negative_rate=0", "greater than 0"),
        ("fine.loss.ranking=item", "'none', 'user' or 'domain'"),
        ("fine.loss.watch_time=watch", "'watch' is not in contract.durations (none)"),
        ('fine.loss={watch_time="watch", negative_rate=0.5}', "leave negative_rate at 1"),
        ('contract.durations={click="s"}', "'click' is a task already"),
        ('contract.durations={watch="h"}', "'s' or 'ms'"),
        ("quality.stop_psi=0", "greater than 0"),
        ("coarse.keep=many", "coarse.keep"),
        ("coarse.keep=0", "greater than 0"),
        ("source.kind=nowhere", "kuairand"),
        ("fine.model", "is not an assignment"),
    ],
)
def test_a_mistake_is_named(override: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        load(None, [override])
    assert told in str(error.value)


def test_a_missing_file_and_broken_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such configuration"):
        load(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(InputError, match="not valid TOML"):
        load(tmp_path / "broken.toml")


def test_processes_fall_evenly_on_the_hosts() -> None:
    hosts = ["machines.hosts=2", "machines.rendezvous=10.0.0.1:29400"]
    assert load(None, [*hosts, "fine.processes=4"]).machines.hosts == 2
    with pytest.raises(InputError, match=r"3 do not fall evenly on 2 machines\.hosts"):
        load(None, [*hosts, "fine.processes=3"])
