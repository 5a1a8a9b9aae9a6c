"""The log's features one by one, by name: what a row's numbers stand for, and the raw values behind codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from models.schema import Field, Number
from pipeline.features import statistics
from pipeline.features.crosses import code_texts
from pipeline.features.identity import canonical
from pipeline.features.store import UNKNOWN_AGE, FeatureStore, Rows

Integers = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.float32]
Masks = dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Category:
    """A categorical feature: `codes` (0 … size - 1) and `raw` (0 … raw_size - 1) of N rows, 0 for unknown in both, and
    what they stand for.

    `raw` tells values apart that the vocabulary did not admit; its 0 is null. `entity`: whose attribute it is, as in
    `FeatureStore.entity_keys`; rows of one entity are alike.
    """

    name: str
    entity: str
    codes: Callable[[Rows], Integers]
    raw: Callable[[Rows], Integers]
    size: int
    raw_size: int
    code_names: Callable[[list[int]], list[str]]
    raw_names: Callable[[list[int]], list[str]]
    kind: Literal["category"] = "category"


@dataclass(frozen=True, eq=False)
class Quantity:
    """A numeric feature, a history's length or a label: `values` of N rows, NaN where missing.

    `entity`: as of a category. `looks_back`: it is made from earlier events, so that it grows with the log.
    """

    name: str
    entity: str
    kind: Literal["number", "length", "label"]
    values: Callable[[Rows], Numbers]
    looks_back: bool


Feature = Category | Quantity


def features_of(store: FeatureStore, events: Path) -> list[Feature]:
    """All that models see of a row, and its labels; `events` is the events folder that the store was built from."""
    schema = store.schema
    absent = _missing(store, events)
    counted = {
        name: entity
        for entity in store.recipe.statistics
        for name in statistics.names(entity, store.recipe.windows, store.recipe.rates)
    }
    context = {place: number for number, place in enumerate(schema.positions("context", "cross"))}
    return [
        *(
            _context(store, field, context[place]) if place in context else _attribute(store, events, field)
            for place, field in enumerate(schema.fields)
        ),
        *(
            _number(store, number, place, absent.get(number.name), counted)
            for place, number in enumerate(schema.numbers)
        ),
        *(
            Quantity(f"{one.name}_length", "user", "length", partial(_length, one.name), looks_back=True)
            for one in schema.sequences
        ),
        *(
            Quantity(label, "user", "label", partial(_label, place), looks_back=False)
            for place, label in enumerate(schema.labels)
        ),
    ]


def _missing(store: FeatureStore, events: Path) -> Masks:
    """By number of users and items: which of their rows had no finite value before it was encoded."""
    masks: Masks = {}
    for side, table in (("user", store.users), ("item", store.items)):
        names = [name.removeprefix("number_") for name in table if name.startswith("number_")]
        if names:
            key = f"{side}_id"
            ids = pl.read_parquet(store.folder / f"{side}s.parquet", columns=[key])
            raw = pl.read_parquet(events / f"{side}s.parquet", columns=[key, *names])
            values = ids.join(raw, on=key, how="left", maintain_order="left")
            masks |= {name: ~np.isfinite(values[name].cast(pl.Float64).fill_null(np.nan).to_numpy()) for name in names}
    return masks


def _attribute(store: FeatureStore, events: Path, field: Field) -> Category:
    table, read = (store.users, _of_user) if field.role == "user" else (store.items, _of_item)
    codes = table[f"code_{field.name}"]
    code_names = raw_names = partial(_code_names, store, field.name)
    raw = codes
    if field.name == f"{field.role}_id":
        raw = np.arange(len(codes), dtype=np.int32)
        raw_names = partial(_ids, store, field.role)
    elif f"key_{field.name}" in table:
        raw = table[f"key_{field.name}"]
        raw_names = partial(_attribute_names, store, events, field.role, field.name)
    raw_size = int(raw.max(initial=0)) + 1
    read_codes, read_raw = partial(read, codes), partial(read, raw)
    return Category(field.name, field.role, read_codes, read_raw, field.size, raw_size, code_names, raw_names)


def _context(store: FeatureStore, field: Field, place: int) -> Category:
    codes, names = partial(_context_codes, place), partial(_code_names, store, field.name)
    return Category(field.name, "user", codes, codes, field.size, field.size, names, names)


def _code_names(store: FeatureStore, name: str, codes: list[int]) -> list[str]:
    """What a field's codes stand for."""
    field = store.schema.fields[store.schema.position(name)]
    vocabulary = pl.scan_parquet(store.folder / "vocabulary.parquet").filter(pl.col("field") == name)
    known = dict(vocabulary.select("code", "value").collect().iter_rows())
    known = known or dict(enumerate(code_texts(field, store.schema.domains), start=1))
    return [known[code] for code in codes]


def _ids(store: FeatureStore, role: str, rows: list[int]) -> list[str]:
    """The ids of users or items by row number, as text."""
    ids = pl.read_parquet(store.folder / f"{role}s.parquet", columns=[f"{role}_id"])[f"{role}_id"]
    return canonical(ids.gather(rows)).to_list()


def _attribute_names(store: FeatureStore, events: Path, role: str, name: str, keys: list[int]) -> list[str]:
    """The attribute's raw values by key, as text: those of the first user or item that has the key."""
    of_rows = (store.users if role == "user" else store.items)[f"key_{name}"]
    first = {int(of_rows[row]): int(row) for row in np.flatnonzero(np.isin(of_rows, keys))[::-1]}
    owner = f"{role}_id"
    ids = pl.read_parquet(store.folder / f"{role}s.parquet", columns=[owner])[owner].gather(
        [first[key] for key in keys]
    )
    table = pl.scan_parquet(events / f"{role}s.parquet").filter(pl.col(owner).is_in(ids.implode())).select(owner, name)
    return canonical(ids.to_frame().join(table.collect(), on=owner, how="left", maintain_order="left")[name]).to_list()


def _number(
    store: FeatureStore, number: Number, place: int, absent: npt.NDArray[np.bool_] | None, counted: dict[str, str]
) -> Quantity:
    """An attribute's number is missing where its raw value was, the age of an item and the likeness of two vectors
    where they are not known."""
    if absent is not None:
        read = partial(_attribute_number, place, number.role, absent)
        return Quantity(number.name, number.role, "number", read, looks_back=False)
    if number.name == "item_age":
        return Quantity(number.name, "item", "number", partial(_age, place), looks_back=False)
    if number.name == "content_similarity":
        users, items = (np.abs(table["content"]).max(axis=1) for table in (store.users, store.items))
        read = partial(_likeness, place, users, items)
        return Quantity(number.name, "user", "number", read, looks_back=False)
    entity = counted.get(number.name, "user")
    return Quantity(number.name, entity, "number", partial(_plain_number, place), looks_back=True)


def _of_user(column: Integers, rows: Rows) -> Integers:
    return column[rows.user]


def _of_item(column: Integers, rows: Rows) -> Integers:
    return column[rows.item]


def _context_codes(place: int, rows: Rows) -> Integers:
    return np.ascontiguousarray(rows.context[:, place])


def _plain_number(place: int, rows: Rows) -> Numbers:
    return np.ascontiguousarray(rows.numbers[:, place])


def _attribute_number(place: int, role: str, absent: npt.NDArray[np.bool_], rows: Rows) -> Numbers:
    owner = rows.user if role == "user" else rows.item
    return np.where(absent[owner], np.float32(np.nan), rows.numbers[:, place])


def _age(place: int, rows: Rows) -> Numbers:
    ages = rows.numbers[:, place]
    return np.where(ages == UNKNOWN_AGE, np.float32(np.nan), ages)


def _likeness(place: int, users: Numbers, items: Numbers, rows: Rows) -> Numbers:
    return np.where((users[rows.user] != 0) & (items[rows.item] != 0), rows.numbers[:, place], np.float32(np.nan))


def _length(name: str, rows: Rows) -> Numbers:
    return rows.lengths[name].astype(np.float32)


def _label(place: int, rows: Rows) -> Numbers:
    return np.ascontiguousarray(rows.labels[:, place])
