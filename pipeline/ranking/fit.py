"""The one training loop: recall, coarse and fine rankers differ by `loss`, `batches` and `validate` alone."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models import processes
from models.layers import FieldEmbedding
from pipeline import freed
from pipeline.progress import training
from pipeline.ranking.checkpoint import Checkpoint, Checkpoints
from pipeline.ranking.optimisers import Optimisers, TableOptimiser

WARM_UP = 0.05
KEPT, LARGEST = (1 << 31) - 1, 1 << 30

Batch = TypeVar("Batch")

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Fitted:
    """What training came to: the best epoch (from 1) and its validation metrics; how many epochs were trained, and the
    seconds this took, validation aside; what the optimisers remember at its end, where one process has all of it."""

    epoch: int
    metrics: dict[str, float]
    epochs: int
    seconds: float
    memory: Mapping[str, Tensor]


@dataclass
class Position:
    """How far training is: the sum of the losses () of this epoch's batches and how many these are, all steps so far,
    the metrics of the epochs that are over, the best of these (0 if there is none), and the seconds spent."""

    losses: Tensor
    batches: int = 0
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.history) + 1

    def count(self, loss: Tensor) -> None:
        self.losses += loss
        self.batches += 1
        self.steps += 1

    def turn(self, metrics: dict[str, float], better: bool) -> None:
        """The epoch is over."""
        self.history.append(metrics)
        self.best = len(self.history) if better else self.best
        self.losses.zero_()
        self.batches = 0


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[nn.Module, Batch], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    *,
    steps: int,
    epochs: int,
    learning_rate: float,
    monitor: str,
    log: Log,
    rows: int | None = None,
    weight_decay: float = 0.0,
    embedding_decay: float = 0.0,
    table_optimiser: TableOptimiser = "adamw",
    table_learning_rate: float = 0.05,
    patience: int = 1,
    clip: float = 5.0,
    memory: Mapping[str, Tensor] | None = None,
    checkpoints: Path | None = None,
    every: int = 500,
) -> Fitted:
    """Train in place and leave the model with the weights of its best epoch.

    `batches(epoch)` yields about `steps` batches, of `rows` rows if these are to be told. `Optimisers` says who steps
    what, and with which of the rates, which rise linearly at first and then fall to zero as a cosine over all epochs.
    The matrix products run in bfloat16 where this is faster. After each epoch `validate` is asked, in evaluation mode;
    training stops when `monitor` (higher is better) has not risen for `patience` epochs. `log(metrics, epoch)` is told
    after each.

    With `memory`, that of an earlier training of the model (`Fitted.memory`), the optimisers go on from what they knew
    then: Adam, begun anew, takes its first steps by the sign of the gradient alone, whatever its size.

    With `checkpoints`, a folder, how far training is is written there after each epoch and every `every` batches of
    it, and training goes on from what the folder holds: called again with the same arguments after a kill, it logs all
    epochs again and comes to the same weights, on a CPU with as many threads bit for bit. `batches` and `validate` then
    have to depend on nothing but their argument.

    Several processes (`models.processes`) train one model that each of them made with the same seed: `batches` yields
    this process's part of every batch, `validate` is asked in all of them, and what the first one finds counts; `log`
    is told in the first alone. Training goes on from checkpoints with as many processes.

    Raises `FloatingPointError` when the loss is no longer finite, and `ValueError` when the folder holds checkpoints of
    a training with other arguments.
    """
    rates = {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "embedding_decay": embedding_decay,
        "table_learning_rate": table_learning_rate,
    }
    freed.keep(KEPT, largest=LARGEST)
    device = next(model.parameters()).device
    plan = {**rates, "table_optimiser": table_optimiser, "steps": steps, "epochs": epochs, "clip": clip}
    plan |= {"processes": processes.count()}
    measured = _together(_Measured(model, loss))
    if processes.place() > 0:
        torch.manual_seed(torch.initial_seed() + processes.place())
        log = _nothing
    kept = Checkpoints(checkpoints) if checkpoints else None
    with closing(Optimisers(model, table_optimiser=table_optimiser, **rates)) as optimisers:
        optimisers.restore(memory or {})
        found = kept.latest() if kept else None
        at = _go_on(found, model, optimisers, plan) if found else Position(torch.zeros((), device=device))
        best = kept.best(at.best) if kept and at.best else deepcopy(model.state_dict())
        for epoch, metrics in enumerate(at.history, start=1):
            log(metrics, epoch)
        while len(at.history) < epochs and (not at.history or len(at.history) - at.best < patience):
            begun = time.perf_counter()
            model.train()
            unseen = iter(batches(at.epoch))
            deque(islice(unseen, at.batches), maxlen=0)
            if found:
                _set_random(found.tensors)
            with training(f"epoch {at.epoch}/{epochs}", steps=steps, rows=rows, done=at.batches) as tell:
                for batch in unseen:
                    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                        value = measured(batch)
                    model.zero_grad(set_to_none=True)
                    value.backward()
                    optimisers.step(_schedule(at.steps / max(1, steps * epochs)), clip)
                    at.count(value.detach())
                    tell(at.losses / at.batches)
                    if kept and at.batches % every == 0:
                        at.seconds += time.perf_counter() - begun
                        kept.write(_checkpoint(at, model, optimisers, plan))
                        begun = time.perf_counter()
            found = None
            mean = float(processes.average(at.losses)) / max(at.batches, 1)
            if not math.isfinite(mean):
                why = f"the training loss became {mean} in epoch {at.epoch}; lower the learning rate"
                raise FloatingPointError(why)
            optimisers.flush()
            at.seconds += time.perf_counter() - begun
            model.eval()
            log(metrics := processes.told({"loss": mean, **validate(model)}), at.epoch)
            better = metrics[monitor] > (at.history[at.best - 1][monitor] if at.best else -math.inf)
            if better:
                best = deepcopy(model.state_dict())
            at.turn(metrics, better)
            if kept:
                if better:
                    kept.write_best(at.best, best)
                kept.write(_checkpoint(at, model, optimisers, plan))
    remembered = optimisers.tensors() if processes.count() == 1 else {}
    model.load_state_dict(best)
    model.eval()
    metrics = {name: value for name, value in at.history[at.best - 1].items() if name != "loss"} if at.best else {}
    return Fitted(at.best, metrics or {monitor: -math.inf}, len(at.history), at.seconds, remembered)


class _Measured(nn.Module):
    """A model's loss as a module of its own, so that what wraps it sees all that the loss calls of the model."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def _together(measured: nn.Module) -> nn.Module:
    """With gradients that are averaged over the processes, but those of the fused tables, which come averaged.

    The averages have a group of their own: they are taken while the backward pass asks for others.
    """
    if processes.count() == 1:
        return measured
    tables = [f"{name}.table.weight" for name, one in measured.named_modules() if isinstance(one, FieldEmbedding)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(measured, tables)
    return DistributedDataParallel(
        measured, process_group=dist.new_group(), forward_sync_buffers=False, gradient_as_bucket_view=True
    )


def _nothing(metrics: dict[str, float], epoch: int) -> None:
    """Of several processes one tells."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device. On a CPU they are with AMX; with
    AVX512-BF16 alone they take 1.7 times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def _schedule(progress: float) -> float:
    """Share of the peak learning rate: linear up over the first part, then half a cosine down to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def _checkpoint(at: Position, model: nn.Module, optimisers: Optimisers, plan: Mapping[str, object]) -> Checkpoint:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimiser.{name}": value for name, value in optimisers.tensors().items()}
    tensors |= {"losses": at.losses, "random.cpu": torch.get_rng_state()}
    if at.losses.is_cuda:
        tensors["random.cuda"] = torch.cuda.get_rng_state(at.losses.device)
    told = {"plan": plan, "steps": at.steps, "history": at.history, "seconds": at.seconds}
    return Checkpoint(at.epoch, at.batches, at.best, tensors, told)


def _go_on(found: Checkpoint, model: nn.Module, optimisers: Optimisers, plan: Mapping[str, object]) -> Position:
    """Bring model and optimisers to where the checkpoint was written."""
    if found.told["plan"] != plan:
        raise ValueError(f"the checkpoint is of a training with {found.told['plan']}, this one has {plan}; remove it")
    device = next(model.parameters()).device
    model.load_state_dict(_under("model.", found.tensors))
    optimisers.restore({name: value.to(device) for name, value in _under("optimiser.", found.tensors).items()})
    told = {name: found.told[name] for name in ("steps", "history", "seconds")}
    return Position(found.tensors["losses"].to(device), batches=found.batches, best=found.best, **told)


def _set_random(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
