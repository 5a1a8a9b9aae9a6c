"""Optimisers of embedding tables whose step costs what its batch looks up, not what the table holds.

The gradient of a table is sparse. A row that gets none is left alone until it is looked up again; before it is read,
it is brought to where steps over the whole table would have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.sequences import sums

CHUNK = 1 << 16
CLOCK = ("step", "decayed", "moved")
"""What of an optimiser's memory of a table is not row by row."""


class RowWise(Optimizer):
    """What the two optimisers below share: sparse gradients, and a decay of every row in every step, w ← (1 − ηλ) w,
    that is made up for when a row is looked up.

    While it lives, lookups of the tables in training mode go through it. `flush` brings all rows up to date, `release`
    does so and gives the tables back. What it remembers is in `state`, as tensors: for a table of V rows `step` (),
    `last` (V,), the step in which a row was last brought up to date, and `decayed` (at least steps + 1,), the log of
    what decay has left by the end of each step.
    """

    def __init__(self, tables: Iterable[nn.Embedding], *, lr: float, weight_decay: float = 0.0) -> None:
        self.tables = list(tables)
        super().__init__([table.weight for table in self.tables], {"lr": lr, "weight_decay": weight_decay})
        for table in self.tables:
            table.sparse = True
            self.state[table.weight] = {
                "step": torch.zeros((), dtype=torch.long),
                "last": torch.zeros(len(table.weight), dtype=torch.long, device=table.weight.device),
                "decayed": torch.zeros(1, dtype=torch.float64, device=table.weight.device),
                **self._begin(table.weight),
            }
        self._hooks = [table.register_forward_pre_hook(self._before_lookup) for table in self.tables]

    @torch.no_grad()
    def coalesce(self) -> list[Tensor]:
        """Sum each table's gradient by row, and return the sums (U, D) of the U rows that have one, for each table
        that does; changing these changes the gradients."""
        for weight in self._with_gradient():
            weight.grad = self._summed(weight)
        return [weight.grad._values() for weight in self._with_gradient()]  # type: ignore[union-attr]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Needs gradients that `coalesce` has summed."""
        for group in self.param_groups:
            for weight in group["params"]:
                state, left = self.state[weight], 1 - group["lr"] * group["weight_decay"]
                state["step"] += 1
                step = int(state["step"])
                if step == len(state["decayed"]):
                    self._lengthen(state)
                state["decayed"][step] = state["decayed"][step - 1] + math.log(left)
                self._tick(state, step, group["lr"])
                if weight.grad is not None:
                    rows, gradient = weight.grad._indices()[0], weight.grad._values()
                    self._move(weight, rows, gradient, step, group["lr"], left)

    def flush(self) -> None:
        for weight in self.state:
            for rows in torch.arange(len(weight), device=weight.device).split(CHUNK):
                self._catch_up(weight, rows)

    def release(self) -> None:
        self.flush()
        for table, hook in zip(self.tables, self._hooks, strict=True):
            table.sparse = False
            hook.remove()

    def _before_lookup(self, table: nn.Module, given: tuple[Any, ...]) -> None:
        if table.training:
            weight: Tensor = table.weight  # type: ignore[assignment]
            self._catch_up(weight, distinct(given[0], len(weight)))

    @torch.no_grad()
    def _catch_up(self, weight: Tensor, rows: Tensor) -> None:
        state = self.state[weight]
        step, last = int(state["step"]), state["last"].index_select(0, rows)
        stale = last < step
        if not stale.any():
            return
        if not stale.all():
            rows, last = rows[stale], last[stale]
        row = weight.index_select(0, rows)
        moved = self._drift(state, rows, last, step)
        if moved is not None:
            row -= moved
        decayed = state["decayed"]
        row *= (decayed[step] - decayed.index_select(0, last)).exp().to(row.dtype)[:, None]
        weight.index_copy_(0, rows, row)
        state["last"][rows] = step

    def _summed(self, weight: Tensor) -> Tensor:
        """The gradient with one entry a row, whose values may be written to."""
        return summed_by_row(weight.grad)  # type: ignore[arg-type]

    def _move(self, weight: Tensor, rows: Tensor, gradient: Tensor, step: int, lr: float, left: float) -> None:
        """Step the rows (U,) by their gradient (U, D); `left` is what decay leaves."""
        state = self.state[weight]
        change = self._change(state, rows, gradient, step)
        weight.index_copy_(0, rows, (left * weight.index_select(0, rows)).sub_(change, alpha=lr))
        state["last"][rows] = step

    def _with_gradient(self) -> list[Tensor]:
        return [weight for weight in self.state if weight.grad is not None]

    def _lengthen(self, state: dict[str, Tensor]) -> None:
        state["decayed"] = torch.cat([state["decayed"], torch.zeros_like(state["decayed"])])

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        """What else is remembered of a table."""
        raise NotImplementedError

    def _tick(self, state: dict[str, Tensor], step: int, lr: float) -> None:
        """Note what a step, the first of which is 1, does to rows without a gradient, beside decay: nothing."""

    def _drift(self, state: dict[str, Tensor], rows: Tensor, last: Tensor, step: int) -> Tensor | None:  # noqa: ARG002
        """By how much the rows (U,), up to date in the steps `last` (U,), have fallen since then: (U, D), or None where
        they keep still. Brings what is remembered of the rows up to date."""
        return None

    def _change(self, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, step: int) -> Tensor:
        """What to take off the rows (U,) for their gradient (U, D), over the learning rate."""
        raise NotImplementedError


class RowAdagrad(RowWise):
    """Adagrad (Duchi et al., JMLR 12, 2011) with one accumulator a row, to which the mean of the squares of the row's
    gradient is added."""

    epsilon = 1e-8

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        return {"squares": torch.zeros(len(weight), device=weight.device)}

    def _change(self, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, step: int) -> Tensor:  # noqa: ARG002
        squares = state["squares"].index_select(0, rows) + gradient.square().mean(dim=1)
        state["squares"].index_copy_(0, rows, squares)
        return gradient / (squares.sqrt() + self.epsilon)[:, None]


class LazyAdamW(RowWise):
    """AdamW (Loshchilov & Hutter, ICLR 2019) over the whole table, at the cost of the rows that a batch looks up.

    Dense AdamW goes on moving a row after its gradient is gone: with m_a and v_a as of the last one, in step a, by

    η_s m_s / (√v_s + ε) = η_s ρ^{s−a} κ_s · m_a / (√v_a + ε √(1 − β₂^a)) in step s > a,

    both moments being corrected for their bias on the left, with ρ = β₁ / √β₂ and κ_s = √(1 − β₂^s) / (1 − β₁^s), if
    ε shrinks as √v_s does while ρ^{s−a} vanishes. The first three factors, over what decay has left since a, are the
    same for all rows; `moved` (at least steps + 1,) is their sum over s for every a. After `WINDOW` steps they are
    below 1e-11 of the first and no longer added.
    """

    betas = 0.9, 0.999
    epsilon = 1e-8
    WINDOW = 256

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        moments = torch.zeros(len(weight), 2, weight.shape[1], device=weight.device)
        return {"moments": moments, "moved": torch.zeros(1, dtype=torch.float64, device=weight.device)}

    def _lengthen(self, state: dict[str, Tensor]) -> None:
        super()._lengthen(state)
        state["moved"] = torch.cat([state["moved"], torch.zeros_like(state["moved"])])

    def _tick(self, state: dict[str, Tensor], step: int, lr: float) -> None:
        first, second = self.betas
        begin = max(0, step - self.WINDOW)
        gap = torch.arange(step - begin, 0, -1, dtype=torch.float64, device=state["moved"].device)
        decayed = state["decayed"][begin:step] - state["decayed"][step]
        size = lr * math.sqrt(1 - second**step) / (1 - first**step)
        state["moved"][begin:step] += size * (gap * math.log(first / math.sqrt(second)) + decayed).exp()

    def _drift(self, state: dict[str, Tensor], rows: Tensor, last: Tensor, step: int) -> Tensor:
        first, second = self.betas
        moments = state["moments"].index_select(0, rows)
        correction = (-torch.expm1(last.clamp(min=1).double() * math.log(second))).sqrt().to(moments.dtype)
        moved = state["moved"].index_select(0, last).to(moments.dtype)
        direction = moments[:, 0] / (moments[:, 1].sqrt() + self.epsilon * correction[:, None])
        gap = (step - last).to(moments.dtype)[:, None, None]
        moments *= (gap * moments.new_tensor([[math.log(first)], [math.log(second)]])).exp()
        state["moments"].index_copy_(0, rows, moments)
        return direction * moved[:, None]

    def _change(self, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, step: int) -> Tensor:
        first, second = self.betas
        moments = state["moments"].index_select(0, rows)
        moments[:, 0].lerp_(gradient, 1 - first)
        moments[:, 1].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["moments"].index_copy_(0, rows, moments)
        denominator = (moments[:, 1] / (1 - second**step)).sqrt_().add_(self.epsilon)
        return (moments[:, 0] / denominator).div_(1 - first**step)


def distinct(codes: Tensor, size: int) -> Tensor:
    """The different ones of any number of codes in 0 … size-1, in order."""
    seen = torch.zeros(size, dtype=torch.bool, device=codes.device)
    seen[codes.flatten()] = True
    return seen.nonzero().flatten()


def summed_by_row(gradient: Tensor) -> Tensor:
    """A sparse (V, D) tensor with one entry a row, whose values may be written to."""
    codes, values = gradient._indices()[0], gradient._values()
    size = gradient.shape[0]
    rows = distinct(codes, size)
    place = torch.empty(size, dtype=torch.long, device=codes.device)
    place[rows] = torch.arange(len(rows), device=codes.device)
    summed = sums(values, place.index_select(0, codes), len(rows))
    return torch.sparse_coo_tensor(rows[None], summed, gradient.shape, is_coalesced=True, check_invariants=False)
