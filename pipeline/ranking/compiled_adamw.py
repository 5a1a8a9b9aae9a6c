"""`LazyAdamW` for tables in a CPU's memory: a row is read once and written once, where tensors' operations would pass
over it a dozen times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.rowwise import LazyAdamW

NOT_SEEN = -1
OFTEN = 128


def of_tables(tables: Sequence[nn.Embedding], *, lr: float, weight_decay: float) -> LazyAdamW:
    """The fastest for where the tables lie; without Numba, as on a machine for training alone, the tensors' way."""
    here = all((table.weight.device.type, table.weight.dtype) == ("cpu", torch.float32) for table in tables)
    kind = CompiledAdamW if here and find_spec("numba") else LazyAdamW
    return kind(tables, lr=lr, weight_decay=weight_decay)


class CompiledAdamW(LazyAdamW):
    """The same steps, up to rounding. Rows with a gradient are in the order in which the batch looks them up."""

    def __init__(self, tables: Sequence[nn.Embedding], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(tables, lr=lr, weight_decay=weight_decay)
        self._places = {weight: np.full(len(weight), NOT_SEEN, np.int32) for weight in self.state}

    def _before_lookup(self, table: nn.Module, given: tuple[Any, ...]) -> None:
        if table.training:
            self._catch_up(table.weight, given[0].flatten())  # type: ignore[arg-type]

    def _catch_up(self, weight: Tensor, rows: Tensor) -> None:
        state, decays = self.state[weight], [math.log(beta) for beta in self.betas]
        told = (state[name].numpy() for name in ("moments", "last", "moved", "decayed"))
        step = int(state["step"])
        _kernels().catch_up(weight.detach().numpy(), *told, rows.numpy(), step, *decays, self.epsilon)

    def _summed(self, weight: Tensor) -> Tensor:
        gradient = weight.grad
        assert gradient is not None
        codes, values = gradient._indices()[0], gradient._values().contiguous()
        rows, sums = map(torch.from_numpy, _kernels().add_up(codes.numpy(), values.numpy(), self._places[weight]))
        return torch.sparse_coo_tensor(rows[None], sums, gradient.shape, is_coalesced=True, check_invariants=False)

    def _move(self, weight: Tensor, rows: Tensor, gradient: Tensor, step: int, lr: float, left: float) -> None:
        state, numbers = self.state[weight], (lr, left, *self.betas, self.epsilon)
        told = (state["moments"].numpy(), state["last"].numpy())
        _kernels().move(weight.detach().numpy(), *told, rows.numpy(), gradient.numpy(), step, *numbers)


class _Kernels(NamedTuple):
    catch_up: Callable[..., None]
    add_up: Callable[..., tuple[np.ndarray, np.ndarray]]
    move: Callable[..., None]


@cache
def _kernels() -> _Kernels:
    from numba import njit

    compiled = njit(nogil=True, cache=True, error_model="numpy")
    return _Kernels(compiled(_catch_up), compiled(_add_up), compiled(_move))


def _catch_up(weight, moments, last, moved, decayed, codes, step, log_first, log_second, epsilon):  # type: ignore[no-untyped-def]
    """`LazyAdamW._drift` and the decay, of rows as often as they are named. What this takes depends on how many steps
    a row missed, most often few: it is worked out once for each such number."""
    told = np.full((OFTEN, 5), np.nan, np.float32)
    own = np.empty(5, np.float32)
    for code in codes:
        since = last[code]
        if since == step:
            continue
        last[code] = step
        gap = step - since
        factors = told[gap] if gap < OFTEN else own
        if gap >= OFTEN or np.isnan(factors[0]):
            factors[0] = moved[since]
            factors[1] = epsilon * math.sqrt(-math.expm1(max(since, 1) * log_second))
            factors[2] = math.exp(decayed[step] - decayed[since])
            factors[3], factors[4] = math.exp(gap * log_first), math.exp(gap * log_second)
        shift, floor, left, of_first, of_second = factors[0], factors[1], factors[2], factors[3], factors[4]
        row, first, second = weight[code], moments[code, 0], moments[code, 1]
        for place in range(len(row)):
            row[place] = (row[place] - first[place] / (np.sqrt(second[place]) + floor) * shift) * left
            first[place] *= of_first
            second[place] *= of_second


def _add_up(codes, values, places):  # type: ignore[no-untyped-def]
    """The different codes, as they come, and the sum of each one's values. `places` (V,) is for its own use, and full
    of `NOT_SEEN` before and after."""
    rows, sums = np.empty(len(codes), np.int64), np.empty_like(values)
    count = 0
    for number in range(len(codes)):
        code, value = codes[number], values[number]
        at = places[code]
        if at == NOT_SEEN:
            places[code], rows[count] = count, code
            own = sums[count]
            for place in range(len(own)):
                own[place] = value[place]
            count += 1
        else:
            own = sums[at]
            for place in range(len(own)):
                own[place] += value[place]
    for row in rows[:count]:
        places[row] = NOT_SEEN
    return rows[:count].copy(), sums[:count]


def _move(weight, moments, last, rows, gradient, step, lr, left, beta_1, beta_2, epsilon):  # type: ignore[no-untyped-def]
    """`LazyAdamW._change`, decay, and the step."""
    of_first, of_second = np.float32(1 - beta_1), np.float32(1 - beta_2)
    kept_second, left, floor = np.float32(beta_2), np.float32(left), np.float32(epsilon)
    size, correction = np.float32(lr / (1 - beta_1**step)), np.float32(1 / (1 - beta_2**step))
    for number in range(len(rows)):
        code = rows[number]
        last[code] = step
        row, first, second, own = weight[code], moments[code, 0], moments[code, 1], gradient[number]
        for place in range(len(row)):
            slope = own[place]
            first[place] += of_first * (slope - first[place])
            second[place] = kept_second * second[place] + of_second * slope * slope
            denominator = np.sqrt(second[place] * correction) + floor
            row[place] = left * row[place] - size * first[place] / denominator
