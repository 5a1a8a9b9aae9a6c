"""Rows that lie group after group, such as a batch's rows sorted by domain: each through its group's own linear layer,
as one matrix product a group.

How many rows a group has is known to the host alone when it runs, so that `torch.compile` sees these as operators of
one output shape.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.library.custom_op(
    "recfunnel::grouped_linear",
    mutates_args=(),
    schema="(Tensor rows, Tensor weight, Tensor bias, Tensor count) -> Tensor",
)
def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor, count: Tensor) -> Tensor:
    """rows (B, in) · weight (G, in, out) + bias (G, out), where group g has `count[g]` of the rows: (B, out)."""
    out = rows.new_empty(len(rows), weight.shape[2])
    sizes = count.tolist()
    for part, matrix, offset, into in zip(rows.split(sizes), weight, bias, out.split(sizes), strict=True):
        torch.addmm(offset, part, matrix, out=into)
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
    sizes = count.tolist()
    parts = zip(gradient.split(sizes), rows.split(sizes), of_rows.split(sizes), strict=True)
    for group, (above, part, of_part) in enumerate(parts):
        torch.mm(above, weight[group].T, out=of_part)
        torch.mm(part.T, above, out=of_weight[group])
        torch.sum(above, dim=0, out=of_bias[group])
    return of_rows, of_weight, of_bias


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
