"""Rows of the feature store as the tensors a model reads (`models.schema.Schema` says which).

Users, items and behaviours lie in memory once, as contiguous tensors that already carry the fused table's offsets;
a batch is a handful of gathers. Histories are packed, not padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.schema import Role, Schema
from pipeline.features.store import Columns, FeatureStore, Rows

Batch = dict[str, Tensor]
MINUTE = 60_000_000
EVENTS = 2_000_000


class Encoder:
    """Turns rows into batches; `rows` may be any number of rows, an index picks some of them."""

    def __init__(self, store: FeatureStore) -> None:
        schema = store.schema
        self.schema = schema
        self._users = entity_codes(schema, "user", store.users)
        self._items = entity_codes(schema, "item", store.items)
        self._context_offsets = torch.tensor([schema.offsets[i] for i in schema.positions("context", "cross")])
        by_role = (schema.positions("user"), schema.positions("item"), schema.positions("context", "cross"))
        self._order = torch.tensor(np.argsort(np.concatenate(by_role)))
        self._content = torch.from_numpy(store.items["content"]) if "content" in store.items else None
        self._sequences = {}
        for sequence in schema.sequences:
            events = store.behaviours[sequence.name]
            codes = torch.stack([self._of_event(name, events) for name in sequence.fields], dim=1)
            self._sequences[sequence.name] = (codes, torch.from_numpy(events["time"]), sequence.gaps)

    def _of_event(self, field: str, events: Columns) -> Tensor:
        """The fused-table rows (events,) of a field of a behaviour's events: the item's, or the domain of the event."""
        if field == "domain":
            return torch.from_numpy(events["domain"]).long() + 1 + self.schema.offsets[self.schema.position(field)]
        names = [self.schema.fields[i].name for i in self.schema.positions("item")]
        return self._items[:, names.index(field)][torch.from_numpy(events["item"]).long()]

    def __call__(self, rows: Rows, index: Tensor | None = None) -> Batch:
        """A batch of the rows at `index` (all of them when it is None); beside the input it has `labels` (B, T) and
        `user` (B,), the number of the row's user.

        Raises ValueError for a row in a domain that the schema does not have.
        """

        def pick(values: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(values)
            return tensor if index is None else tensor[index]

        user, item, domain = pick(rows.user).long(), pick(rows.item).long(), pick(rows.domain).long()
        if len(strange := domain[(domain < 0) | (domain >= len(self.schema.domains))]):
            raise ValueError(
                f"column domain: {int(strange[0])} is the number of no domain; score rows of "
                f"{', '.join(self.schema.domains)}, or train again on a log with events of the new domain"
            )
        context = pick(rows.context).long() + self._context_offsets
        fields = torch.cat([self._users[user], self._items[item], context], dim=1)
        batch = {
            "fields": fields[:, self._order],
            "numbers": pick(rows.numbers),
            "domain": domain,
            "user": user,
            "labels": pick(rows.labels),
        }
        if self._content is not None:
            batch["content"] = self._content[item]
        time = pick(rows.time)
        for name, (codes, times, gaps) in self._sequences.items():
            length = pick(rows.lengths[name]).long()
            row = torch.repeat_interleave(length)
            before = length.cumsum(0) - length
            event = torch.arange(len(row)) + (pick(rows.ends[name]) - length - before)[row]
            minutes = (time[row] - times[event]).clamp(min=0).float() / MINUTE
            batch[f"{name}.fields"] = codes[event]
            batch[f"{name}.gap"] = torch.log2(1 + minutes).clamp(max=gaps - 1).long()
            batch[f"{name}.row"] = row
        return batch


def shuffled(
    encoder: Encoder,
    rows: Rows,
    *,
    size: int,
    seed: int,
    device: torch.device | str = "cpu",
    beside: Batch | None = None,
) -> Callable[[int], Iterator[Batch]]:
    """Batches of `size` rows, in an order that depends on the seed and the epoch alone; `beside` holds further columns
    of the rows."""

    def epoch(number: int) -> Iterator[Batch]:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 1_000 + number))
        for index in order.split(size):
            further = {name: column[index] for name, column in (beside or {}).items()}
            yield to_device({**encoder(rows, index), **further}, device)

    return epoch


def in_order(encoder: Encoder, rows: Rows, *, size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Batches of `size` rows, or of fewer where these would have more than `EVENTS` events, in the rows' order;
    one without rows if there is none."""
    events = np.cumsum(sum(rows.lengths.values(), np.zeros(len(rows), np.int64)))
    ends = [0]
    while ends[-1] < len(rows):
        begin = ends[-1]
        before = events[begin - 1] if begin else 0
        fitting = int(np.searchsorted(events, before + EVENTS, side="right"))
        ends.append(min(max(begin + 1, min(begin + size, fitting)), len(rows)))
    for index in torch.arange(len(rows)).tensor_split(ends[1:-1]):
        yield to_device(encoder(rows, index), device)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def entity_codes(schema: Schema, role: Role, table: Columns) -> Tensor:
    """The fused-table rows of every user or item: (users or items, fields of the role)."""
    columns = [table[f"code_{schema.fields[i].name}"] + schema.offsets[i] for i in schema.positions(role)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))
