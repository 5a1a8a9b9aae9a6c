"""The one training loop: recall, coarse and fine rankers differ by `loss`, `batches` and `validate` alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.ftrl import FTRL, LearntByFTRL
from pipeline.progress import progress

WARM_UP = 0.05

Batch = TypeVar("Batch")

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Fitted:
    """What training came to: the best epoch (from 1) and its validation metrics; how many epochs were trained, and the
    seconds this took, validation aside."""

    epoch: int
    metrics: dict[str, float]
    epochs: int
    seconds: float


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
    weight_decay: float = 0.0,
    embedding_decay: float = 0.0,
    patience: int = 1,
    clip: float = 5.0,
) -> Fitted:
    """Train in place and leave the model with the weights of its best epoch.

    `batches(epoch)` yields about `steps` batches. AdamW with a linear warm-up and a cosine decay to zero over all
    epochs; embedding tables have a decay of their own, biases and norms none. What a model wants trained by
    FTRL-Proximal knows no schedule and no decay. The matrix products run in bfloat16 where the machine has units for
    it. After each epoch `validate` is asked, in evaluation mode; training stops when `monitor` (higher is better) has
    not risen for `patience` epochs. `log(metrics, epoch)` is told after each.

    Raises `FloatingPointError` when the loss is no longer finite.
    """
    by_ftrl = model.ftrl_parameters() if isinstance(model, LearntByFTRL) else []
    adamw = torch.optim.AdamW(_groups(model, by_ftrl, weight_decay, embedding_decay), lr=learning_rate, fused=True)
    optimisers = [adamw, FTRL(by_ftrl)] if by_ftrl else [adamw]
    total = max(1, steps * epochs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: _schedule(step / total))
    device = next(model.parameters()).device
    best_epoch, best_metrics, best_state = 0, {monitor: -math.inf}, deepcopy(model.state_dict())
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        begun = time.perf_counter()
        model.train()
        seen = torch.zeros((), device=device)
        count = 0
        for batch in progress(batches(epoch), f"epoch {epoch}/{epochs}", total=steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                value = loss(model, batch)
            model.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            for optimiser in optimisers:
                optimiser.step()
            scheduler.step()
            seen += value.detach()
            count += 1
        mean = float(seen) / max(count, 1)
        if not math.isfinite(mean):
            raise FloatingPointError(f"the training loss became {mean} in epoch {epoch}; lower the learning rate")
        seconds += time.perf_counter() - begun
        model.eval()
        metrics = validate(model)
        log({"loss": mean, **metrics}, epoch)
        if metrics[monitor] > best_metrics[monitor]:
            best_epoch, best_metrics, best_state = epoch, metrics, deepcopy(model.state_dict())
        elif epoch - best_epoch >= patience:
            break
    model.load_state_dict(best_state)
    model.eval()
    return Fitted(best_epoch, best_metrics, epoch, seconds)


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _schedule(progress: float) -> float:
    """Share of the peak learning rate: linear up over the first part, then half a cosine down to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def _groups(
    model: nn.Module, excluded: list[nn.Parameter], weight_decay: float, embedding_decay: float
) -> list[dict[str, object]]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    others = {id(parameter) for parameter in excluded}
    groups: dict[str, list[nn.Parameter]] = {"embeddings": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if id(parameter) in others:
            continue
        matrix = parameter.ndim > 1 and not name.endswith("bias")
        groups["embeddings" if id(parameter) in tables else "matrices" if matrix else "vectors"].append(parameter)
    decay = {"embeddings": embedding_decay, "matrices": weight_decay, "vectors": 0.0}
    return [{"params": members, "weight_decay": decay[kind]} for kind, members in groups.items() if members]
