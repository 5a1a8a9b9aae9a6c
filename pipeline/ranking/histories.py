"""Histories as models read them: the events of many rows, packed one after another by a kernel.

A row's history is a run of a behaviour's table, so that a batch reads one run a row. What models see of an event is
looked up by its item: of the events, no more than item, domain and time lie in memory, or in a file that is mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.schema import Schema, Sequence
from pipeline.features.store import Events
from pipeline.features.timeline import Integers

MINUTE = 60_000_000
NOWHERE = -1


@dataclass(frozen=True, eq=False)
class Histories:
    """The events of one behaviour. `codes` (items, F) are the fused-table rows that a sequence's fields have for each
    item; to those in the column `domain_place` (or `NOWHERE`) the number of the event's domain is added."""

    item: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int16]
    time: Integers
    codes: Integers
    domain_place: int
    gaps: int

    @classmethod
    def of(cls, schema: Schema, sequence: Sequence, events: Events, items: Integers) -> Histories:
        """From a behaviour's columns and the items' fused-table rows (items, fields of items)."""
        names = [schema.fields[place].name for place in schema.positions("item")]
        codes = np.empty((len(items), len(sequence.fields)), np.int64)
        for place, name in enumerate(sequence.fields):
            known = name != "domain"
            codes[:, place] = items[:, names.index(name)] if known else 1 + schema.offsets[schema.position(name)]
        told = "domain" in sequence.fields
        return cls(
            item=events["item"],
            domain=events["domain"] if told else np.empty(0, np.int16),
            time=events["time"],
            codes=codes,
            domain_place=sequence.fields.index("domain") if told else NOWHERE,
            gaps=sequence.gaps,
        )

    def pack(self, ends: Integers, lengths: npt.NDArray[np.int32], times: Integers) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows at `times` (B,) with the events [end - length, end) (B,): the events' fused-table rows (S, F), gap
        buckets (S,), ⌊log₂(1 + minutes)⌋ or the last, and rows (S,), int64."""
        count = int(lengths.sum(dtype=np.int64))
        fields = np.empty((count, self.codes.shape[1]), np.int64)
        gap, rows = np.empty((2, count), np.int64)
        events = (self.item, self.domain, self.time)
        _kernel()(ends, lengths, times, *events, self.codes, self.domain_place, self.gaps, fields, gap, rows)
        return torch.from_numpy(fields), torch.from_numpy(gap), torch.from_numpy(rows)


@cache
def _kernel() -> Callable[..., None]:
    """`_pack`, compiled; without histories training needs no compiler."""
    from numba import njit

    compiled: Callable[..., None] = njit(nogil=True, cache=True)(_pack)
    return compiled


def _pack(ends, lengths, times, item, domain, time, codes, domain_place, gaps, fields, gap, rows):  # type: ignore[no-untyped-def]
    place = 0
    for row in range(len(ends)):
        for event in range(ends[row] - lengths[row], ends[row]):
            for column in range(codes.shape[1]):
                fields[place, column] = codes[item[event], column]
            if domain_place != NOWHERE:
                fields[place, domain_place] += domain[event]
            minutes = max(times[row] - time[event], 0) // MINUTE
            bucket = 0
            while bucket < gaps - 1 and minutes + 1 >= 2 << bucket:
                bucket += 1
            gap[place] = bucket
            rows[place] = row
            place += 1
