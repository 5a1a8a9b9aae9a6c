"""F10: pairs of columns that become one field each, chosen by what they say of the label beyond their two parts.

A linear model weighs "sport" and weighs "aged 20", but not sport for those aged 20. A cross of two fields has a code
for each pair of their values that training rows hold often enough, by the rule of any vocabulary; its FID is a hash
of the two values' FIDs. How much a pair (a, b) adds is its mutual information with the label less what the best model
gives that weighs a and b apart (the log-linear one without three-way interaction): KL of the one from the other
(Amari, "Information geometry on hierarchy of probability distributions", 2001). Unlike I(ab; y) − I(a; y) − I(b; y)
that is 0 for two strong columns that do not interact. It is taken without the bias that comes with the number of
cells (Miller, "Note on the bias of information estimates", 1955), else a pair would win by being rare; and that bias
is as many times greater as rows of one user or one item are alike (Rao & Scott, "On chi-squared tests for multiway
contingency tables with cell proportions estimated from survey data", Annals of Statistics 1984), else it would win by
telling users apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from models.schema import Field, Role
from pipeline import config
from pipeline.features import identity
from pipeline.features.identity import VALUE_BITS, Vocabulary
from pipeline.features.pairs import CROSS, FILE, Codes, Pair
from pipeline.features.timeline import Integers
from pipeline.lake import InputError
from pipeline.progress import progress

Labels = npt.NDArray[np.integer[Any]]

JUDGED = {
    "field": pl.String,
    "pairs": pl.Int64,
    "share": pl.Float64,
    "information": pl.Float64,
    "left": pl.Float64,
    "right": pl.Float64,
    "interaction": pl.Float64,
}
DAY = 86_400_000_000
LOW = 0xFFFFFFFF
ROUNDS, PRECISION = 100, 1e-3
CODES = {"field": pl.String, "left": pl.Int32, "right": pl.Int32, "code": pl.Int32}


@dataclass(frozen=True)
class Crosses:
    """What was chosen: `fields`, their `vocabularies`, and `codes`: field, left, right (codes of the parts), code.

    `sizes` are those of the fields that can be crossed. `judged` has a row for each candidate, the most informative
    first: field, chosen, pairs (admitted ones), share (of the rows, that have one), and in nats an impression, over
    these rows, information, left, right (of the parts) and
    interaction.
    """

    fields: tuple[Field, ...]
    vocabularies: tuple[Vocabulary, ...]
    codes: pl.DataFrame
    sizes: dict[str, int]
    judged: pl.DataFrame

    def extend(self, side: Literal["user", "item"], table: pl.DataFrame) -> pl.DataFrame:
        """The users' or items' table with the codes of the crosses of its own columns."""
        for field in self.fields:
            if field.role == side:
                own = self.codes.filter(field=field.name)
                pair = Pair.of(
                    field.name, self.sizes, *(own[column].to_numpy() for column in ("left", "right", "code"))
                )
                codes = pair.encode(*(table[f"code_{name}"].to_numpy() for name in (pair.left, pair.right)))
                table = table.with_columns(pl.Series(f"code_{field.name}", codes))
        return table

    def write(self, out: Path) -> None:
        """What was judged and what was chosen, if there was any candidate."""
        if self.judged.height:
            self.judged.write_parquet(out / "crosses.parquet", compression="zstd", statistics=False)
            self.codes.write_parquet(out / FILE, compression="zstd", statistics=False)

    def metrics(self) -> dict[str, float]:
        """Interaction information and vocabulary of the chosen ones, with `_x_` for the cross's sign."""
        chosen = self.judged.filter("chosen")
        interactions = zip(chosen["field"], chosen["interaction"], strict=True)
        found = {f"interaction_{name}": float(value) for name, value in interactions}
        found |= {name: value for one in self.vocabularies for name, value in one.metrics().items()}
        return {name.replace(CROSS, "_x_"): value for name, value in found.items()}


def candidates(settings: config.Crosses, columns: Iterable[str]) -> list[str]:
    """The names "left*right" of the listed pairs and of all pairs of the listed columns, none twice.

    Raises InputError for a column that is not among `columns`, and for a pair that is not one.
    """
    known = set(columns)

    def checked(name: str, key: str) -> str:
        if name not in known:
            raise InputError(f"features.crosses.{key}: no column {name!r} to cross; use {', '.join(sorted(known))}")
        return name

    pairs = []
    for name in settings.pairs:
        left, sign, right = name.partition(CROSS)
        if not sign or left == right:
            raise InputError(
                f'features.crosses.pairs: {name!r} is no pair of two columns; write "gender{CROSS}category"'
            )
        pairs.append((checked(left, "pairs"), checked(right, "pairs")))
    pairs += combinations([checked(name, "columns") for name in dict.fromkeys(settings.columns)], 2)
    distinct: dict[frozenset[str], str] = {}
    for pair in pairs:
        distinct.setdefault(frozenset(pair), CROSS.join(pair))
    return list(distinct.values())


def choose(
    log: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    fields: Iterable[Field],
    values: Mapping[str, pl.DataFrame],
    settings: config.Features,
    positive: str,
    validation: int,
) -> Crosses:
    """Choose among the candidates by what training rows of the log, those before `validation` (µs), say of `positive`.

    `values[name]` has the value and the FID of each of a field's codes 1, 2, …. The pairs that the settings list are
    kept, and of those made from their columns the `keep` with the most interaction information, if they have any.
    """
    train = log.filter(pl.col("time") < validation)
    by_name = {field.name: field for field in fields}
    tables: dict[str, tuple[pl.DataFrame, str]] = {"user": (users, "user"), "item": (items, "item")}

    def codes(name: str) -> Codes:
        if (role := by_name[name].role) in tables:
            table, row = tables[role]
            return table[f"code_{name}"].gather(train[row]).to_numpy()
        return train[f"code_{name}"].to_numpy()

    return fit(
        settings.crosses,
        by_name,
        values,
        codes,
        train["time"].to_numpy(),
        (train[positive] > 0).to_numpy().astype(np.int64),
        [train["user"].to_numpy(), train["item"].to_numpy()],
        admit_after=settings.admit_after,
        evict_before=validation - round(settings.evict_days * DAY),
    )


def fit(
    settings: config.Crosses,
    fields: Mapping[str, Field],
    values: Mapping[str, pl.DataFrame],
    codes: Callable[[str], Codes],
    times: Integers,
    labels: Labels,
    groups: Sequence[Codes],
    *,
    admit_after: int,
    evict_before: int,
) -> Crosses:
    """`choose` on the codes (N,) of each field, times (N,) in µs, 0/1 labels (N,) and groups (N,) of training rows."""
    names = candidates(settings, fields)
    judged = []
    for name in progress(names, "crosses"):
        left, right = (codes(part) for part in name.split(CROSS))
        cells = _cells(left, right, times)
        kept = cells.admitted(admit_after, evict_before)
        judged.append({"field": name, **_judge(cells, kept, left, right, labels, groups)})
    listed = pl.col("field").is_in(list(settings.pairs))
    best = (pl.col("interaction").rank("ordinal", descending=True).over(listed) <= settings.keep) & (
        pl.col("interaction") > 0
    )
    table = pl.DataFrame(judged, schema=JUDGED).with_columns(chosen=listed | best)
    table = table.sort("interaction", "field", descending=[True, False])
    chosen = [name for name in names if name in set(table.filter("chosen")["field"])]
    identity.check_slots([*fields, *chosen])
    made = []
    for name in chosen:
        left, right = (codes(part) for part in name.split(CROSS))
        cells = _cells(left, right, times)
        made.append(_vocabulary(name, cells, values, admit_after, evict_before))
    return Crosses(
        fields=tuple(
            Field(name, vocabulary.size, _role(name, fields))
            for name, (vocabulary, _) in zip(chosen, made, strict=True)
        ),
        vocabularies=tuple(vocabulary for vocabulary, _ in made),
        codes=pl.concat([pl.DataFrame(schema=CODES), *(table for _, table in made)]),
        sizes={name: field.size for name, field in fields.items()},
        judged=table,
    )


def values_of(
    fields: Iterable[Field], vocabularies: Iterable[Vocabulary], domains: tuple[str, ...]
) -> dict[str, pl.DataFrame]:
    """Value and FID of each field's codes 1, 2, …; the codes themselves stand for values that no vocabulary holds."""
    known = {one.field: one.table.select("value", "fid") for one in vocabularies}
    for field in fields:
        if field.name not in known:
            texts = list(domains) if field.name == "domain" else [str(code) for code in range(1, field.size)]
            series = pl.Series("value", texts, dtype=pl.String)
            known[field.name] = pl.DataFrame([series, identity.fids(field.name, series)])
    return known


def pair_fids(field: str, left: Integers, right: Integers) -> Integers:
    """FIDs (N,) of pairs of FIDs, in the slot of `field`; the order of the two matters."""
    hashed = _mix(_mix(left.astype(np.uint64)) + right.astype(np.uint64))
    high, mask = identity.slot(field) << VALUE_BITS, np.uint64((1 << VALUE_BITS) - 1)
    return (hashed & mask).astype(np.int64) | high


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's 64-bit finaliser after a step of the golden ratio, as in SplitMix (Steele et al., OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    words = (words ^ (words >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return words ^ (words >> np.uint64(33))


def information(cells: Codes, labels: Labels) -> float:
    """I(cell; label) in nats of N cells ≥ 0 and 0/1 labels, less the bias (cells − 1)(classes − 1) / 2N."""
    shown = np.bincount(cells)
    shown, places = shown[shown > 0], (np.cumsum(shown > 0) - 1)[cells]
    positive = np.bincount(places, labels, minlength=len(shown))
    joint = np.stack([shown - positive, positive])
    total = joint.sum()
    if total == 0:
        return 0.0
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0) / total
    some = joint > 0
    found = (joint[some] * np.log(joint[some] / expected[some])).sum() / total
    classes = int((joint.sum(axis=1) > 0).sum())
    return float(found - (len(shown) - 1) * (classes - 1) / (2 * total))


def interaction(left: Codes, right: Codes, labels: Labels, groups: Iterable[Codes] = ()) -> float:
    """What the pairs of N rows tell of their 0/1 labels beyond the two parts' own effects, in nats, less its bias.

    The model without interaction is fitted by iterative proportional fitting (Deming & Stephan, 1940). Rows with the
    same number in one of the `groups` (N,), such as a user's, are not taken for independent.
    """
    pairs, cell = np.unique(left.astype(np.int64) << 32 | right, return_inverse=True)
    sides = [np.unique(part, return_inverse=True)[1] for part in (pairs >> 32, pairs & LOW)]
    positive = np.bincount(cell, labels, minlength=len(pairs))
    shown = np.bincount(cell, minlength=len(pairs))
    found = np.stack([shown - positive, positive])
    if not found.sum(axis=1).all():
        return 0.0
    expected = np.stack([shown, shown]) / 2
    for _ in range(ROUNDS):
        before = expected
        for side in sides:
            wanted, given = (np.stack([np.bincount(side, of) for of in part]) for part in (found, expected))
            expected = expected * np.divide(wanted, given, out=np.zeros_like(given), where=given > 0)[:, side]
        expected = expected * (shown / expected.sum(axis=0))
        if np.abs(expected - before).max() < PRECISION:
            break
    some = found > 0
    beyond = (found[some] * np.log(found[some] / expected[some])).sum()
    free = max(len(pairs) - sum(int(side.max()) + 1 for side in sides) + 1, 0)
    effect = max([1.0, *(_design_effect(cell, group, labels, expected[1] / shown) for group in groups)])
    return float((beyond - effect * free / 2) / len(labels))


def _design_effect(cell: Integers, group: Codes, labels: Labels, rates: npt.NDArray[np.float64]) -> float:
    """How many times greater the variance of the cells' sums of labels is than that of independent rows with these
    rates (cells,), if rows of one group are alike."""
    errors = labels - rates[cell]
    together = np.unique(cell << 32 | group, return_inverse=True)[1]
    independent = (rates * (1 - rates))[cell].sum()
    return float((np.bincount(together, errors) ** 2).sum() / independent) if independent > 0 else 1.0


@dataclass(frozen=True)
class _Cells:
    """The pairs of known codes among N rows: their codes, how often and when last; `place` (N,), -1 for none."""

    left: Integers
    right: Integers
    count: Integers
    last_seen: Integers
    place: Integers

    def admitted(self, admit_after: int, evict_before: int) -> npt.NDArray[np.bool_]:
        return (self.count >= admit_after) & (self.last_seen >= evict_before)


def _cells(left: Codes, right: Codes, times: Integers) -> _Cells:
    known = (left > 0) & (right > 0)
    keys, inverse = np.unique(left[known].astype(np.int64) << 32 | right[known], return_inverse=True)
    last_seen = np.full(len(keys), np.iinfo(np.int64).min)
    np.maximum.at(last_seen, inverse, times[known])
    place = np.full(len(left), -1, np.int64)
    place[known] = inverse
    return _Cells(keys >> 32, keys & LOW, np.bincount(inverse, minlength=len(keys)), last_seen, place)


def _judge(
    cells: _Cells,
    admitted: npt.NDArray[np.bool_],
    left: Codes,
    right: Codes,
    labels: Labels,
    groups: Iterable[Codes],
) -> dict[str, float]:
    """Measured on the rows where the cross says anything, then times their share."""
    rows = np.append(admitted, [False])[cells.place]
    told = {"information": cells.place[rows], "left": left[rows], "right": right[rows]}
    measured = {name: information(part, labels[rows]) for name, part in told.items()}
    measured["interaction"] = interaction(left[rows], right[rows], labels[rows], [group[rows] for group in groups])
    share = float(rows.mean()) if len(rows) else 0.0
    return {"pairs": int(admitted.sum()), "share": share} | {name: share * value for name, value in measured.items()}


def _vocabulary(
    name: str, cells: _Cells, values: Mapping[str, pl.DataFrame], admit_after: int, evict_before: int
) -> tuple[Vocabulary, pl.DataFrame]:
    """The vocabulary of a cross, and which pair of codes has which of its codes."""
    left, _, right = name.partition(CROSS)
    one, other = values[left][cells.left - 1], values[right][cells.right - 1]
    fids = pl.Series("fid", pair_fids(name, one["fid"].to_numpy(), other["fid"].to_numpy()))
    seen = pl.DataFrame({"count": cells.count, "last_seen": cells.last_seen}).with_columns(
        fids, value=one["value"] + f" {CROSS} " + other["value"]
    )
    vocabulary = identity.admit(name, seen, admit_after=admit_after, evict_before=evict_before)
    pairs = pl.DataFrame({"left": cells.left, "right": cells.right}).with_columns(fids)
    codes = pairs.join(vocabulary.table.select("fid", "code"), on="fid").sort("left", "right")
    return vocabulary, codes.select(pl.lit(name).alias("field"), "left", "right", "code").cast(CODES)  # type: ignore[arg-type]


def _role(name: str, fields: Mapping[str, Field]) -> Role:
    """The role of both parts; "cross" if they differ, or depend on the row."""
    left, _, right = name.partition(CROSS)
    roles = {fields[left].role, fields[right].role}
    return "user" if roles == {"user"} else "item" if roles == {"item"} else "cross"
