"""Rows that lie group after group, such as a batch's rows sorted by domain: each through its group's own linear layer,
as one matrix product a group.

How many rows a group has is known to the host alone when it runs, so that `torch.compile` sees these as operators of
one output shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEP = 128


@torch.library.custom_op(
    "recfunnel::grouped_linear",
    mutates_args=(),
    schema="(Tensor rows, Tensor weight, Tensor bias, Tensor count) -> Tensor",
)
def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor, count: Tensor) -> Tensor:
    """rows (B, in) · weight (G, in, out) + bias (G, out), where group g has `count[g]` of the rows: (B, out)."""
    out = rows.new_empty(len(rows), weight.shape[2])
    for group, (own, window) in enumerate(_windows(rows, count)):
        if own == window:
            torch.addmm(bias[group], rows[own], weight[group], out=out[own])
        else:
            out[own] = torch.addmm(bias[group], rows[window], weight[group])[_within(own, window)]
    return out


@torch.library.custom_op(
    "recfunnel::grouped_linear_gradients",
    mutates_args=(),
    schema="(Tensor gradient, Tensor rows, Tensor weight, Tensor count) -> (Tensor, Tensor, Tensor)",
)
def _gradients(gradient: Tensor, rows: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the output, those of rows, weight and bias."""
    of_rows, of_weight = torch.empty_like(rows), torch.empty_like(weight)
    of_bias = weight.new_empty(len(weight), weight.shape[2])
    for group, (own, window) in enumerate(_windows(rows, count)):
        above = gradient[own]
        torch.sum(above, dim=0, out=of_bias[group])
        if own == window:
            torch.mm(above, weight[group].T, out=of_rows[own])
        else:
            above = gradient.new_zeros(window.stop - window.start, gradient.shape[1])
            above[_within(own, window)] = gradient[own]
            of_rows[own] = torch.mm(above, weight[group].T)[_within(own, window)]
        torch.mm(rows[window].T, above, out=of_weight[group])
    return of_rows, of_weight, of_bias


def _windows(rows: Tensor, count: Tensor) -> Iterator[tuple[slice, slice]]:
    """Where each group's rows lie, and rows around them, if need be, that make a matrix of one of few sizes: on a CPU a
    product in bfloat16 has a program made for it, for each new size, which takes longer than the product."""
    begin = 0
    for size in count.tolist():
        whole = -(-size // STEP) * STEP
        own = slice(begin, begin + size)
        if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and size and whole <= len(rows):
            first = min(begin, len(rows) - whole)
            yield own, slice(first, first + whole)
        else:
            yield own, own
        begin += size


def _within(own: slice, window: slice) -> slice:
    return slice(own.start - window.start, own.stop - window.start)


@grouped_linear.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor, count: Tensor) -> Tensor:  # noqa: ARG001
    return rows.new_empty(rows.shape[0], weight.shape[2])


@_gradients.register_fake
def _(gradient: Tensor, rows: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(rows), torch.empty_like(weight), weight.new_empty(weight.shape[0], weight.shape[2])


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    rows, weight, _, count = inputs
    ctx.save_for_backward(rows, weight, count)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_gradients(gradient.contiguous(), *ctx.saved_tensors), None)


grouped_linear.register_autograd(_backward, setup_context=_remember)
for _device in ("cpu", "cuda"):
    grouped_linear.register_autocast(_device, torch.bfloat16)


def grouping(group: Int[Tensor, " B"], groups: int) -> tuple[Int[Tensor, " B"], Int[Tensor, " groups"]]:
    """The order that brings the rows of each group together, stable, and how many it has."""
    return group.argsort(stable=True), group.new_zeros(groups).index_add(0, group, torch.ones_like(group))


def ungrouped(rows: Float[Tensor, "B D"], order: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """Rows back where they were before they were put into this order."""
    return torch.empty_like(rows).index_copy(0, order, rows)
