"""F1 and F2: every value has one number for life, and a short code if training saw it often enough.

A feature id (FID) is a non-negative int64: 15 bits of slot, a hash of the field's name, above 48 bits of the value's
hash. It depends on nothing but the two texts, so that it is the same on every machine and in every run. A vocabulary
gives the FIDs admitted from the training rows the codes 1, 2, … that embedding tables are indexed by; 0 is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash

from pipeline.lake import InputError

VALUE_BITS = 48
SLOTS = 1 << 15


def slot(field: str) -> int:
    """The field's slot, 0 … 32767: its name's xxh3, folded."""
    return xxhash.xxh3_64_intdigest(field.encode()) % SLOTS


def check_slots(fields: list[str]) -> None:
    """Raise InputError if two fields of one schema share a slot."""
    taken: dict[int, str] = {}
    for field in fields:
        other = taken.setdefault(slot(field), field)
        if other != field:
            raise InputError(
                f"columns {other!r} and {field!r} share a feature-id slot; rename one of them in its table"
            )


def canonical(values: pl.Series) -> pl.Series:
    """The text that stands for each value whatever its type: 7, 7.0 and "7" are all "7". Null and NaN stay null."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = (values == values.floor()) & (values.abs() < 2.0**53)
        integers = pl.select(pl.when(whole).then(values)).to_series().cast(pl.Int64, strict=False).cast(pl.String)
        return pl.select(pl.coalesce(integers, values.cast(pl.String))).to_series().alias(values.name)
    return values.cast(pl.String)


def fids(field: str, values: pl.Series) -> pl.Series:
    """Feature ids (Int64) of a column's values; null stays null. Each distinct value is hashed once."""
    texts = canonical(values)
    distinct = texts.drop_nulls().unique(maintain_order=True)
    high, mask = slot(field) << VALUE_BITS, (1 << VALUE_BITS) - 1
    hashed = pl.Series([high | (xxhash.xxh64_intdigest(text.encode()) & mask) for text in distinct], dtype=pl.Int64)
    return texts.replace_strict(distinct, hashed, default=None, return_dtype=pl.Int64).alias("fid")


@dataclass(frozen=True)
class Vocabulary:
    """`table`: field, value, fid, code, count, last_seen of the admitted values, in the order of their codes."""

    field: str
    table: pl.DataFrame
    rare: int
    evicted: int
    collisions: int

    @property
    def size(self) -> int:
        """Rows of the field's embedding table: the admitted values and the unknown one."""
        return self.table.height + 1

    def encode(self, values: pl.Series) -> pl.Series:
        """Codes (Int32) of a column's values; 0 for null and for whatever was not admitted."""
        known = fids(self.field, values)
        if self.table.is_empty():
            return pl.Series(f"code_{self.field}", np.zeros(len(values), np.int32))
        codes = known.replace_strict(self.table["fid"], self.table["code"], default=0, return_dtype=pl.Int32)
        return codes.fill_null(0).alias(f"code_{self.field}")

    def metrics(self) -> dict[str, float]:
        counts = {"vocabulary": self.size, "rare": self.rare, "evicted": self.evicted, "collisions": self.collisions}
        return {f"{name}_{self.field}": count for name, count in counts.items()}


def fit(field: str, seen: pl.DataFrame, *, admit_after: int, evict_before: int) -> Vocabulary:
    """The vocabulary of a field from training occurrences.

    `seen`: value, count (how often), last_seen (µs), any number of rows a value. A value is admitted after
    `admit_after` occurrences unless it was last seen before `evict_before` (µs). The most frequent one gets code 1.
    """
    values = (
        seen.with_columns(value=canonical(seen["value"]))
        .drop_nulls("value")
        .group_by("value")
        .agg(pl.col("count").sum().cast(pl.Int64), pl.col("last_seen").max())
        .sort("value")
    )
    coded = values.with_columns(fids(field, values["value"]))
    return admit(field, coded, admit_after=admit_after, evict_before=evict_before)


def admit(field: str, seen: pl.DataFrame, *, admit_after: int, evict_before: int) -> Vocabulary:
    """The same from values that have their FIDs: value, fid, count and last_seen, a row each."""
    merged = seen.group_by("fid").agg(pl.col("value").min(), pl.col("count").sum(), pl.col("last_seen").max())
    frequent = merged.filter(pl.col("count") >= admit_after)
    admitted = frequent.filter(pl.col("last_seen") >= evict_before).sort(["count", "fid"], descending=[True, False])
    table = admitted.with_row_index("code", offset=1).select(
        pl.lit(field).alias("field"), "value", "fid", pl.col("code").cast(pl.Int32), "count", "last_seen"
    )
    return Vocabulary(
        field,
        table,
        rare=merged.height - frequent.height,
        evicted=frequent.height - admitted.height,
        collisions=seen.height - merged.height,
    )


def keys(values: pl.Series) -> pl.Series:
    """Dense numbers (Int32) 1, 2, … of the distinct values in the order of their text; 0 for null.

    Unlike a vocabulary's codes they tell rare values apart: what statistics are counted by.
    """
    return canonical(values).rank("dense").fill_null(0).cast(pl.Int32)
