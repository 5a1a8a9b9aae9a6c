"""F1 and F2: every value has one number for life, and a short code if training saw it often enough.

A feature id (FID) is a non-negative int64: 15 bits of slot, a hash of the field's name, above 48 bits of the value's
hash. It depends on nothing but the two texts, so that it is the same on every machine and in every run. A vocabulary
gives the FIDs admitted from the training rows the codes 1, 2, … that embedding tables are indexed by; 0 is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from pipeline.lake import InputError

VALUE_BITS = 48
SLOTS = 1 << 15
MOST_DISTINCT = 50_000_000


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


def distinct(values: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int32]]:
    """A column's distinct values in the order of their first rows, and each row's place among them; -1 for null.

    What depends on the value alone is computed for the distinct ones and taken by place: `results[places]`.
    """
    encoded = values.rechunk().to_arrow().dictionary_encode()
    places = encoded.indices.cast(pa.int32()).fill_null(-1).to_numpy()
    return pl.Series(values.name, encoded.dictionary), places


def fids(field: str, values: pl.Series) -> pl.Series:
    """Feature ids (Int64) of a column's values; null stays null. Each distinct value is hashed once."""
    once, places = distinct(values)
    return _fids(field, canonical(once)).extend_constant(None, 1).gather(places)


def _fids(field: str, texts: pl.Series) -> pl.Series:
    high, mask = np.uint64(slot(field) << VALUE_BITS), np.uint64((1 << VALUE_BITS) - 1)
    hashes = np.fromiter(map(xxhash.xxh64_intdigest, texts.fill_null("").cast(pl.Binary)), np.uint64, len(texts))
    return pl.select(fid=pl.when(texts.is_not_null()).then(((hashes & mask) | high).view(np.int64))).to_series()


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
        once, places = distinct(values)
        known = pl.DataFrame(_fids(self.field, canonical(once))).join(
            self.table.select("fid", "code"), on="fid", how="left", maintain_order="left"
        )
        codes = np.append(known["code"].fill_null(0).to_numpy(), np.int32(0))
        return pl.Series(f"code_{self.field}", codes[places])

    def metrics(self) -> dict[str, float]:
        counts = {"vocabulary": self.size, "rare": self.rare, "evicted": self.evicted, "collisions": self.collisions}
        return {f"{name}_{self.field}": count for name, count in counts.items()}


def fit(field: str, seen: pl.DataFrame, *, admit_after: int, evict_before: int) -> Vocabulary:
    """The vocabulary of a field from training occurrences.

    `seen`: value, count (how often), last_seen (µs), any number of rows a value. A value is admitted after
    `admit_after` occurrences unless it was last seen before `evict_before` (µs). The most frequent one gets code 1.

    Raises InputError for a field with more than `MOST_DISTINCT` values; a sketch of a few kilobytes tells their number
    within 2 % before any is kept.
    """
    if seen.height > MOST_DISTINCT:
        check_distinct(field, seen.select(pl.col("value").approx_n_unique()).item())
    counted = seen.group_by("value").agg(pl.col("count").sum().cast(pl.Int64), pl.col("last_seen").max())
    texts = canonical(counted["value"])
    hashed = counted.with_columns(texts, _fids(field, texts)).drop_nulls("fid")
    return admit(field, hashed, admit_after=admit_after, evict_before=evict_before)


def check_distinct(field: str, different: int) -> None:
    """Raise InputError for a field with more than `MOST_DISTINCT` values."""
    if different > MOST_DISTINCT:
        raise InputError(
            f"column {field!r} has about {different:,} different values, more than the {MOST_DISTINCT:,} that a "
            "vocabulary can hold; take it out of [features] if it only numbers the rows, else group its values"
        )


def admit(field: str, seen: pl.DataFrame, *, admit_after: int, evict_before: int) -> Vocabulary:
    """The same from values that have their FIDs: value, fid, count and last_seen, any number of rows a value."""
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
        collisions=seen["value"].n_unique() - merged.height,
    )


def keys(values: pl.Series) -> pl.Series:
    """Dense numbers (Int32) 1, 2, … of the distinct values in the order in which they first appear; 0 for null.

    Unlike a vocabulary's codes they tell rare values apart: what statistics are counted by. Values that are appended
    change no earlier number.
    """
    texts = canonical(values)
    distinct = texts.drop_nulls().unique(maintain_order=True)
    numbers = pl.int_range(1, len(distinct) + 1, dtype=pl.Int32, eager=True)
    return texts.replace_strict(distinct, numbers, default=0, return_dtype=pl.Int32)
