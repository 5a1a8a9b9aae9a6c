"""Processes that train one model together, each on its part of every batch (`torchrun` starts them).

The loss to minimise is the average over the processes of what each has on its part. Where a part's own loss would
depend on how the batch was split, such as a mean over the rows whose label is known, its terms are averaged here. A
process without a group is the first of one, and for it nothing here does anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def place() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if count() > 1 else 0


def part(index: Tensor) -> Tensor:
    """This process's part of a batch's rows (B,); the parts are as long as one another, or one longer."""
    return index.tensor_split(count())[place()]


def average(values: Tensor) -> Tensor:
    """The mean over the processes, through which no gradient flows."""
    if count() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / count()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        summed = values.contiguous().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def total(values: Tensor) -> Tensor:
    """The sum over the processes. Its gradient is summed over them too: what each adds is in the losses of all."""
    return values if count() == 1 else _Total.apply(values)  # type: ignore[no-untyped-call]


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows (B, D) of all processes: how many there are (), their mean (D,), and the sum of the squares of what
    they differ from it by (D,); without a gradient (Chan et al., Updating Formulae, 1979)."""
    width = values.shape[1]
    mean = values.sum(0) / max(len(values), 1)
    own = torch.cat([values.new_tensor([len(values)]), mean, (values - mean).square_().sum(0)])
    gathered = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(gathered, own)
    counts, means, squares = torch.stack(gathered).split([1, width, width], dim=1)
    rows = counts.sum()
    mean = (counts * means).sum(0) / rows.clamp(min=1)
    return rows, mean, (squares + counts * (means - mean).square()).sum(0)


def joined(part: Tensor) -> Tensor:
    """The parts (B_i, …) of all processes one after another, in every process; without a gradient."""
    if count() == 1:
        return part
    lengths = [torch.zeros(1, dtype=torch.long, device=part.device) for _ in range(count())]
    dist.all_gather(lengths, torch.tensor([len(part)], device=part.device))
    longest = int(torch.cat(lengths).max())
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    gathered = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(gathered, padded)
    return torch.cat([one[: int(length)] for one, length in zip(gathered, lengths, strict=True)])


def told(values: dict[str, float]) -> dict[str, float]:
    """What the first process says, in all."""
    if count() == 1:
        return values
    said: list[Any] = [values]
    dist.broadcast_object_list(said, src=0)
    return dict(said[0])


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()
