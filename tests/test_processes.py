"""Two and four processes against one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import process_worlds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from models import processes, sharding
from pipeline.config import Machines
from pipeline.ranking.launch import launch


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """How many processes there were, and the folder with what they left; in the end they train a large table."""
    folder = tmp_path_factory.mktemp(f"together-{request.param}")
    start(folder, request.param, worlds=True)
    return request.param, folder


def start(folder: Path, count: int, *, worlds: bool) -> None:
    """Two million rows of 8 numbers, their moments, when they were stepped, and the best weights twice are 336 MB."""
    (folder / "job.json").write_text(json.dumps({"worlds": worlds, "users": 2_000_000, "room": 300_000_000}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(__file__).parent}")
        patch.setenv("OMP_NUM_THREADS", "1")
        launch("process_worlds", folder / "job.json", processes=count, machines=Machines())


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[nn.Module, list[float]]]:
    return {name: process_worlds.train(name)[:2] for name in process_worlds.WORLDS}


def told(folder: Path, place: int) -> dict[str, Any]:
    return json.loads((folder / f"told-{place}.json").read_text())  # type: ignore[no-any-return]


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.eval()(process_worlds.labelled(torch.arange(len(process_worlds.ROWS))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", process_worlds.WORLDS)
def test_the_loss_of_every_epoch_and_the_scores_are_those_of_one_process(together, alone, name: str) -> None:  # type: ignore[no-untyped-def]
    _, folder = together
    model, curve = alone[name]
    assert told(folder, 0)["curves"][name] == pytest.approx(curve, rel=1e-4)
    expected = logits(model)
    trained = load_file(folder / "weights.safetensors")
    model.load_state_dict({key.removeprefix(f"{name}."): value for key, value in trained.items() if name in key})
    torch.testing.assert_close(logits(model), expected, atol=1e-3, rtol=1e-3)


def test_one_process_tells(together) -> None:  # type: ignore[no-untyped-def]
    count, folder = together
    assert [bool(told(folder, place)["curves"]["din"]) for place in range(count)] == [True] + [False] * (count - 1)


def test_killed_and_started_again_they_end_with_the_same_weights(together) -> None:  # type: ignore[no-untyped-def]
    """Dropout and all: killed in the ninth step, the fourth of the second epoch, of which two are in a checkpoint."""
    _, folder = together
    weights = load_file(folder / "resumed.safetensors")
    names = [key.removeprefix("resumed.") for key in weights if key.startswith("resumed.")]
    assert names
    assert all(torch.equal(weights[f"resumed.{name}"], weights[f"unbroken.{name}"]) for name in names)
    assert told(folder, 0)["steps"] == 15 - 7


def test_every_row_is_in_one_process_once_an_epoch(together) -> None:  # type: ignore[no-untyped-def]
    """Batches of 5 of 11 rows; a last one of fewer rows than processes is scored and not trained on."""
    count, folder = together
    parts = [told(folder, place)["batches"] for place in range(count)]
    scored = [[row for part in parts for row in part["in_order"][batch]] for batch in range(3)]
    assert scored == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11]]
    trained = [[row for part in parts for row in part["shuffled"][batch]] for batch in range(2)]
    assert trained == process_worlds.rows_of_batches()["shuffled"][:2]
    assert {len(part["shuffled"]) for part in parts} == {2}


def test_rows_are_standardised_by_the_whole_batch(together) -> None:  # type: ignore[no-untyped-def]
    count, folder = together
    for place in range(count):
        found = load_file(folder / f"standardised-{place}.safetensors")["standardised"]
        torch.testing.assert_close(found, process_worlds.standardised(), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.data())
@settings(max_examples=50)
def test_rows_are_drawn_as_those_of_the_whole_table(size: int, width: int, count: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, size))
    rows = range(begin, data.draw(st.integers(begin, size)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "BLOCK", 16)
        torch.manual_seed(0)
        drawn, following = sharding.drawn(rows, size, width, 0.5), torch.randn(3)
    torch.manual_seed(0)
    whole = torch.empty(size, width).normal_(std=0.5)
    assert torch.equal(drawn, whole[rows.start : rows.stop])
    assert torch.equal(following, torch.randn(3))


def test_a_process_alone_is_the_first_of_one() -> None:
    values = torch.arange(3.0)
    assert (processes.count(), processes.place()) == (1, 0)
    assert all(one(values) is values for one in (processes.total, processes.average, processes.joined))
    assert torch.equal(processes.part(values), values)


def test_a_table_that_several_processes_have_held_is_too_large_for_one_which_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"process 0 of 1 failed: .*can't allocate memory"):
        start(tmp_path, 1, worlds=False)
