"""Rows of the feature store as the tensors a model reads (`models.schema.Schema` says which).

Users and items lie in memory once, as contiguous tensors that already carry the fused table's offsets; a batch is a
handful of gathers. Histories are packed, not padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import processes
from models.layers import as_index
from models.schema import Role, Schema
from pipeline.features.store import Columns, FeatureStore, Pointers, Rows
from pipeline.features.timeline import Integers
from pipeline.ranking.histories import Histories

Batch = dict[str, Tensor]
Records = npt.NDArray[Any]
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
        self._unknown, self._own = torch.tensor([schema.offsets]), as_index(by_role[0])
        self._order = as_index(np.argsort(np.concatenate(by_role)).tolist())
        self._recorded = {*(layout(schema, len(schema.labels), {}).names or ())}
        self._content = torch.from_numpy(store.items["content"]) if "content" in store.items else None
        self._histories = {
            one.name: Histories.of(schema, one, store.behaviours[one.name], self._items.numpy())
            for one in schema.sequences
        }

    def __call__(
        self, rows: Rows, index: Tensor | None = None, *, asker: npt.NDArray[np.integer] | None = None
    ) -> Batch:
        """A batch of the rows at `index` (all of them when it is None); beside the input it has `labels` (B, T) and
        `user` (B,), the number of the row's user.

        With `asker` (B,), ascending from 0, rows of one asker have one history, which is packed once.

        Raises ValueError for a row in a domain that the schema does not have.
        """

        def pick(values: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(values)
            return tensor if index is None else tensor[index]

        user, item, domain = pick(rows.user).long(), pick(rows.item).long(), pick(rows.domain).long()
        self._check(domain.numpy())
        fields = self._coded(user, item, pick(rows.context))
        owner = {} if asker is None else {"asker": torch.from_numpy(asker.astype(np.int64))}
        first = slice(None) if asker is None else np.searchsorted(asker, np.arange(asker.max(initial=-1) + 1))

        def of_asker(values: np.ndarray) -> np.ndarray:
            return pick(values).numpy()[first]

        pointers = {name: (of_asker(ends), of_asker(lengths)) for name, (ends, lengths) in rows.pointers.items()}
        columns = {"numbers": pick(rows.numbers), "domain": domain, "user": user, "labels": pick(rows.labels)}
        content = self._content_of(item)
        return {"fields": fields, **columns, **owner, **content, **self._packed(pointers, of_asker(rows.time))}

    def users(
        self, user: npt.NDArray[np.integer], domain: npt.NDArray[np.integer], time: Integers, pointers: Pointers
    ) -> Batch:
        """What a user's tower reads, but for numbers: users (N,) in a domain as of `time`, whose histories lie at
        `pointers`. Every field that is not a user's own is unknown."""
        fields = self._unknown.repeat(len(user), 1)
        fields[:, self._own] = self._users.index_select(0, torch.from_numpy(user.astype(np.int64)))
        numbers = torch.empty(len(user), 0)
        place = torch.from_numpy(domain.astype(np.int64))
        return {"fields": fields, "numbers": numbers, "domain": place, **self._packed(pointers, time)}

    def records(self, rows: Rows, beside: Columns | None = None) -> Records:
        """The rows (N,), with further columns (N, …) of theirs `beside`, as records (`layout`), of which `batch` makes
        what a call of the encoder makes of the rows."""
        further = beside or {}
        kinds = {name: np.dtype((column.dtype, column.shape[1:])) for name, column in further.items()}
        records = np.zeros(len(rows), layout(self.schema, rows.labels.shape[1], kinds))
        records["fields"] = self._coded(
            *(torch.from_numpy(one) for one in (rows.user, rows.item, rows.context))
        ).numpy()
        for name in ("user", "item", "domain", "time", "numbers", "labels"):
            records[name] = getattr(rows, name)
        for name in self._histories:
            records[f"{name}_end"], records[f"{name}_length"] = rows.ends[name], rows.lengths[name]
        for name, column in further.items():
            records[name] = column
        self._check(records["domain"])
        return records

    def batch(self, records: Records) -> Batch:
        """A batch of records (B,)."""

        def plain(name: str) -> np.ndarray:
            return np.ascontiguousarray(records[name])

        def integers(name: str) -> Tensor:
            return torch.from_numpy(records[name].astype(np.int64))

        pointers = {name: (plain(f"{name}_end"), plain(f"{name}_length")) for name in self._histories}
        return {
            **{"fields": integers("fields"), "numbers": torch.from_numpy(plain("numbers"))},
            **{"domain": integers("domain"), "user": integers("user"), "labels": torch.from_numpy(plain("labels"))},
            **self._content_of(integers("item")),
            **self._packed(pointers, plain("time")),
            **{name: torch.from_numpy(plain(name)) for name in records.dtype.names or () if name not in self._recorded},
        }

    def _coded(self, user: Tensor, item: Tensor, context: Tensor) -> Tensor:
        """The rows of the fused table (B, fields) that belong to users, items (B,) and codes of the context (B, …)."""
        codes = self._users.index_select(0, user.long()), self._items.index_select(0, item.long())
        return torch.cat([*codes, context.long() + self._context_offsets], dim=1)[:, self._order]

    def _check(self, domain: npt.NDArray[np.integer]) -> None:
        if len(strange := domain[(domain < 0) | (domain >= len(self.schema.domains))]):
            raise ValueError(
                f"column domain: {int(strange[0])} is the number of no domain; score rows of "
                f"{', '.join(self.schema.domains)}, or train again on a log with events of the new domain"
            )

    def _content_of(self, item: Tensor) -> Batch:
        return {} if self._content is None else {"content": self._content.index_select(0, item)}

    def _packed(self, pointers: Pointers, time: Integers) -> Batch:
        """The events of histories as of `time` (B,)."""
        found = {}
        for name, (ends, lengths) in pointers.items():
            packed = self._histories[name].pack(ends, lengths, time)
            found[f"{name}.fields"], found[f"{name}.gap"], found[f"{name}.row"] = packed
        return found


def layout(schema: Schema, labels: int, beside: Mapping[str, npt.DTypeLike]) -> np.dtype[np.void]:
    """What a record holds of a row with so many labels: all that does not lie in memory anyway. `fields` are rows of
    the fused table, and `<sequence>_end` and `<sequence>_length` the place of a history in its behaviour."""
    columns: list[Any] = [
        ("time", np.int64),
        *((f"{one.name}_end", np.int64) for one in schema.sequences),
        *((f"{one.name}_length", np.int32) for one in schema.sequences),
        *((name, np.int32) for name in ("user", "item", "domain")),
        ("fields", np.int32, (len(schema.fields),)),
        ("numbers", np.float32, (len(schema.numbers),)),
        ("labels", np.float32, (labels,)),
        *beside.items(),
    ]
    return np.dtype(columns, align=True)


def in_order(encoder: Encoder, rows: Rows, *, size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Batches of `size` rows, or of fewer where these would have more than `EVENTS` events, in the rows' order;
    one without rows if there is none. Of several processes each has its part of every batch."""
    events = np.cumsum(sum(rows.lengths.values(), np.zeros(len(rows), np.int64)))
    ends = [0]
    while ends[-1] < len(rows):
        begin = ends[-1]
        before = events[begin - 1] if begin else 0
        fitting = int(np.searchsorted(events, before + EVENTS, side="right"))
        ends.append(min(max(begin + 1, min(begin + size, fitting)), len(rows)))
    for index in torch.arange(len(rows)).tensor_split(ends[1:-1]):
        yield to_device(encoder(rows, processes.part(index)), device)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def entity_codes(schema: Schema, role: Role, table: Columns) -> Tensor:
    """The fused-table rows of every user or item: (users or items, fields of the role)."""
    columns = [table[f"code_{schema.fields[i].name}"] + schema.offsets[i] for i in schema.positions(role)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))
