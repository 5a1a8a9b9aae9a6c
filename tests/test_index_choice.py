from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from test_index import brute_force, clustered

from pipeline.lake import InputError
from pipeline.recall import index_choice
from pipeline.recall.faiss_engine import HNSW, IVF, PQ, Flat
from pipeline.recall.index import build


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_choice, "SMALL", 2_000)
    monkeypatch.setattr(index_choice, "LONGEST", 0.02)


def test_few_vectors_are_compared_one_by_one() -> None:
    (only,) = index_choice.choose(clustered(1_999, 1), np.arange(1_999), clustered(5, 2))
    assert only.index.engine.recipe == Flat()
    (only,) = index_choice.choose(clustered(2_500, 1), np.arange(2_500), clustered(1, 2))
    assert only.index.engine.recipe == Flat()


def test_all_that_pass_the_gate_are_told_the_fastest_first() -> None:
    vectors, queries, others = clustered(6_000, 1), clustered(100, 2), clustered(300, 3)
    vectors[9, 0] = np.nan
    trials = index_choice.choose(vectors, np.arange(6_000), queries, k=20, gate=0.9, model="m")
    assert {type(trial.index.engine.recipe) for trial in trials} == {Flat, PQ, IVF, HNSW}
    assert [trial.seconds for trial in trials] == sorted(trial.seconds for trial in trials)
    exact, _ = brute_force(np.nan_to_num(vectors), others, 20)
    for trial in trials:
        assert (trial.index.model, trial.index.left_out, len(trial.index)) == ("m", 1, 5_999)
        assert trial.recall >= 0.9
        assert np.mean(index_choice.recalls(trial.index, others, exact)) >= 0.88


@pytest.mark.parametrize(("slower", "kinds"), [(1.0, 1), (1e9, 3)])
def test_kinds_that_are_slow_on_a_sample_are_not_built_for_all(
    slower: float, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_choice, "SAMPLE", 2_500)
    monkeypatch.setattr(index_choice, "SLOWER", slower)
    trials = index_choice.choose(clustered(6_000, 1), np.arange(6_000), clustered(100, 2), k=20, gate=0.9)
    assert {len(trial.index) for trial in trials} == {6_000}
    assert len({type(trial.index.engine.recipe) for trial in trials} - {Flat}) == kinds


def test_no_more_is_searched_than_the_gate_asks_for() -> None:
    """A step less of what was chosen does not pass; the two are searched independently over the same vectors."""
    queries, made = clustered(100, 2), build(clustered(6_000, 1), np.arange(6_000), IVF(cells=100))
    exact, _ = brute_force(clustered(6_000, 1), queries, 20)
    (index,) = index_choice.sufficient(made, queries, exact, 0.95)
    probed = index.engine.recipe.probed
    ladder = index_choice.ladder(1, 100)
    before = index_choice.searched(made, IVF(100, ladder[ladder.index(probed) - 1]))
    found = index_choice.recalls(index, queries, exact)
    less = index_choice.recalls(before, queries, exact)
    assert np.mean(found) - np.std(found, ddof=1) / 10 >= 0.95 > np.mean(less) - np.std(less, ddof=1) / 10
    assert not list(index_choice.sufficient(made, queries, exact, 1.01))


def test_what_interrupts_a_query_once_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rounds over three queries each is interrupted once, at another query."""
    monkeypatch.setattr(index_choice, "LONGEST", 10.0)
    calls = itertools.count()

    def ask(query: np.ndarray) -> None:
        if next(calls) in (0, 4, 8):
            time.sleep(0.01)

    assert index_choice.seconds_alone(ask, clustered(3, 1)) < 0.002


def test_ladder() -> None:
    assert index_choice.ladder(1, 12) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert index_choice.ladder(100, 130) == [100, 110, 121, 130]
    assert index_choice.ladder(5, 5) == [5]


def test_an_option_names_a_kind() -> None:
    vectors, queries = clustered(1_500, 1), clustered(5, 2)

    def made(how: str) -> object:
        return index_choice.make(vectors, np.arange(1_500), how, queries, model="m", name="items").engine.recipe

    assert made("auto") == Flat()
    assert isinstance(made("hnsw"), HNSW)
    with pytest.raises(InputError, match=r"index 'hsnw' is unknown; it is auto, flat, ivf, hnsw, pq"):
        made("hsnw")
