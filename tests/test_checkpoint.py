"""Training that is killed and started again against training that is not: equal bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from test_rankers import SCHEMA, examples, pack
from torch import Tensor, nn

from models import RANKERS
from models.objective import objective
from pipeline.ranking.checkpoint import Checkpoint, Checkpoints
from pipeline.ranking.fit import TableOptimiser, fit
from pipeline.ranking.losses import masked_bce

EPOCHS, BATCHES = 3, 5
ROWS = examples(BATCHES * 8)
SCORES = [0.5, 0.7, 0.6]


class KilledError(Exception):
    pass


def train(
    folder: Path | None,
    *,
    kill_at: int = -1,
    kill_in_validation: int = -1,
    table_optimiser: TableOptimiser = "adamw",
    learning_rate: float = 0.01,
) -> tuple[bytes, list[tuple[int, dict[str, float]]], int]:
    """The weights of a ranker with dropout and a part trained by FTRL, the epochs it logged, and its number of steps.

    It is killed at the beginning of a step, counted from 0, or of an epoch's validation."""
    torch.manual_seed(0)
    model = RANKERS["wide_deep"](SCHEMA, dropout=0.2, hidden=(8,), width=4)
    logged: list[tuple[int, dict[str, float]]] = []
    steps = 0

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(8):
            batch = pack([ROWS[i] for i in index])
            yield {**batch, "labels": (batch["fields"][:, :2] % 2).float()}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal steps
        if steps == kill_at:
            raise KilledError
        steps += 1
        return objective(model, batch, masked_bce)

    def validate(model: nn.Module) -> dict[str, float]:
        epoch = len(logged) + 1
        if epoch == kill_in_validation:
            raise KilledError
        return {"score": SCORES[epoch - 1]}

    fitted = fit(
        model,
        batches,
        loss,
        validate,
        steps=BATCHES,
        epochs=EPOCHS,
        learning_rate=learning_rate,
        embedding_decay=1.0,
        table_optimiser=table_optimiser,
        monitor="score",
        patience=2,
        log=lambda metrics, epoch: logged.append((epoch, metrics)),
        checkpoints=folder,
        every=2,
    )
    assert (fitted.epoch, fitted.metrics, fitted.epochs) == (2, {"score": 0.7}, 3)
    return save(model.state_dict()), logged, steps


@pytest.fixture(scope="module")
def unbroken() -> dict[TableOptimiser, tuple[bytes, list[tuple[int, dict[str, float]]], int]]:
    return {name: train(None, table_optimiser=name) for name in ("adamw", "adagrad")}  # type: ignore[dict-item,misc]


def test_checkpoints_change_nothing(tmp_path: Path, unbroken) -> None:  # type: ignore[no-untyped-def]
    assert train(tmp_path) == unbroken["adamw"]


@pytest.mark.parametrize("table_optimiser", ["adamw", "adagrad"])
@pytest.mark.parametrize("step", range(EPOCHS * BATCHES))
def test_killed_in_any_step(tmp_path: Path, step: int, table_optimiser: TableOptimiser, unbroken) -> None:  # type: ignore[no-untyped-def]
    """It goes on after the last even batch of the epoch or after its end, so that at most one step is taken again."""
    with pytest.raises(KilledError):
        train(tmp_path, kill_at=step, table_optimiser=table_optimiser)
    weights, logged, steps = train(tmp_path, table_optimiser=table_optimiser)
    assert (weights, logged) == unbroken[table_optimiser][:2]
    assert steps == EPOCHS * BATCHES - step + step % BATCHES % 2


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_killed_in_any_validation(tmp_path: Path, epoch: int, unbroken) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KilledError):
        train(tmp_path, kill_in_validation=epoch)
    assert train(tmp_path)[:2] == unbroken["adamw"][:2]


def test_killed_again_and_again(tmp_path: Path, unbroken) -> None:  # type: ignore[no-untyped-def]
    killed = 0
    while True:
        try:
            ended = train(tmp_path, kill_at=2)
            break
        except KilledError:
            killed += 1
    assert ended[:2] == unbroken["adamw"][:2]
    assert killed > EPOCHS


def test_finished_training_is_not_done_again(tmp_path: Path, unbroken) -> None:  # type: ignore[no-untyped-def]
    train(tmp_path)
    assert train(tmp_path) == (*unbroken["adamw"][:2], 0)


def test_another_training_does_not_go_on_from_it(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match="learning_rate"):
        train(tmp_path, learning_rate=0.02)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "at-0003-00000004",
        "at-0004-00000000",
        "best-0002.safetensors",
    ]


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2).T, "b": torch.tensor(7), "c": torch.arange(3, dtype=torch.uint8)}
    kept = Checkpoints(tmp_path, keep=1)
    assert kept.latest() is None
    for batches in (9, 10):
        kept.write(Checkpoint(1, batches, 0, tensors, {"history": [{"score": 0.1 + 0.2}], "batches": batches}))
    found = kept.latest()
    assert found is not None
    assert (found.epoch, found.batches, found.best) == (1, 10, 0)
    assert found.told == {"history": [{"score": 0.1 + 0.2}], "batches": 10}
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert len(list(tmp_path.iterdir())) == 1


def kill_while_writing(folder: Path, count: int) -> None:
    """End this process by SIGKILL as soon as it is seen to write its checkpoint of this number, counted from 1."""
    writes, was = 0, False
    while writes < count:
        now = (folder / ".unfinished").exists()
        writes, was = writes + (now and not was), now
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_by_the_system_while_it_writes(tmp_path: Path, unbroken) -> None:  # type: ignore[no-untyped-def]
    command = [sys.executable, __file__, str(tmp_path), "4", str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert train(tmp_path)[:2] == unbroken["adamw"][:2]


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    threading.Thread(target=kill_while_writing, args=(place, number), daemon=True).start()
    while True:
        train(place)
        shutil.rmtree(place)
