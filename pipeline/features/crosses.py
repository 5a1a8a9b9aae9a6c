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

A pair made from columns is kept only if chance does not explain its interaction: if it lies more than `DEVIATIONS`
standard deviations above none at all. This is judged by Pearson's X², since of cells with few positives, of which a
cross has most, the likelihood ratio is too great on average, and X² is not; its variance is that of the cells' own
binomial distributions (McCullagh, "On the asymptotic distribution of Pearson's statistic in linear exponential-family
models", International Statistical Review 1985), and a gamma distribution with both moments is made a normal one by its
cube root (Wilson & Hilferty, "The distribution of chi-square", PNAS 1931).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from pipeline.features.pairs import CROSS, FILE, Pair
from pipeline.features.store import POSITIONS
from pipeline.features.timeline import Integers
from pipeline.lake import InputError
from pipeline.progress import progress

Counts = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

JUDGED = {
    "field": pl.String,
    "pairs": pl.Int64,
    "share": pl.Float64,
    "information": pl.Float64,
    "left": pl.Float64,
    "right": pl.Float64,
    "interaction": pl.Float64,
    "deviations": pl.Float64,
}
GROUPS = ("user", "item")
SAMPLE = 1 << 20
ROUNDS, PRECISION = 100, 1e-3
DEVIATIONS = 4.0
CODES = {"field": pl.String, "left": pl.Int32, "right": pl.Int32, "code": pl.Int32}


@dataclass(frozen=True)
class Crosses:
    """What was chosen: `fields`, their `vocabularies`, and `codes`: field, left, right (codes of the parts), code.

    `sizes` are those of the fields that can be crossed. `judged` has a row for each candidate, the most informative
    first: field, chosen, pairs (admitted ones), share (of the rows, that have one), in nats an impression, over these
    rows, information, left, right (of the parts) and interaction, and how many standard deviations (`deviations`) that
    lies above what chance alone would give.
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
    rows: pl.LazyFrame,
    fields: Mapping[str, Field],
    values: Mapping[str, pl.DataFrame],
    settings: config.Crosses,
    positive: str,
    *,
    admit_after: int,
    evict_before: int,
) -> Crosses:
    """Choose among the candidates by what training rows say of a task, `positive`.

    `rows` has the columns user, item, time (µs), the task's, and `code_<field>` of all that may be crossed;
    `values[name]` has the value and the FID of each of a field's codes 1, 2, …. The pairs that the settings list are
    kept, and of those made from their columns the `keep` with the most interaction information, if chance does not
    explain it: by more than `DEVIATIONS` standard deviations, which noise passes once in 30,000 times.

    Only the pairs of codes are held in memory, and for the likeness of a user's or an item's rows those of every so
    many users or items: about `SAMPLE` rows. Raises InputError for a field with more pairs than a vocabulary can hold.
    """
    names = candidates(settings, fields)
    if not names:
        return Crosses((), (), pl.DataFrame(schema=CODES), {}, pl.DataFrame(schema={**JUDGED, "chosen": pl.Boolean}))
    parts = dict.fromkeys(part for name in names for part in name.split(CROSS))
    coded = rows.select("time", *GROUPS, pl.col(positive).alias("label"), *(f"code_{part}" for part in parts))
    total = coded.select(pl.len()).collect(engine="streaming").item()
    every = -(-total // SAMPLE) or 1
    samples = {group: coded.filter(pl.col(group) % every == 0).collect(engine="streaming") for group in GROUPS}
    judged = []
    for name in progress(names, "crosses"):
        left, _, right = name.partition(CROSS)
        if fields[left].size * fields[right].size > identity.MOST_DISTINCT:
            key = pl.col(f"code_{left}").cast(pl.Int64) * fields[right].size + pl.col(f"code_{right}")
            identity.check_distinct(name, coded.select(key.approx_n_unique()).collect(engine="streaming").item())
        counted = _cells(coded, left, right)
        admitted = counted.filter(pl.col("shown") >= admit_after, pl.col("last_seen") >= evict_before)
        groups = {group: _cells(sample.lazy(), left, right, group) for group, sample in samples.items()}
        judged.append({"field": name, **_judge(admitted, groups, total)})
    listed = pl.col("field").is_in(list(settings.pairs))
    told = ~listed & (pl.col("interaction") > 0) & (pl.col("deviations") > DEVIATIONS)
    table = pl.DataFrame(judged, schema=JUDGED).sort("interaction", "field", descending=[True, False])
    table = table.with_columns(chosen=listed | (told & (told.cum_sum() <= settings.keep)))
    chosen = [name for name in names if name in set(table.filter("chosen")["field"])]
    identity.check_slots([*fields, *chosen])
    made = [_vocabulary(name, _cells(coded, *name.split(CROSS)), values, admit_after, evict_before) for name in chosen]
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
            codes = list(domains) if field.name == "domain" else [str(code) for code in range(1, field.size)]
            fids = identity.fids(field.name, pl.Series(codes, dtype=pl.String))
            texts = pl.Series("value", code_texts(field, domains), dtype=pl.String)
            known[field.name] = pl.DataFrame([texts, fids.alias("fid")])
    return known


def code_texts(field: Field, domains: tuple[str, ...]) -> list[str]:
    """What the codes 1, 2, … of a field without a vocabulary stand for, to be read by people."""
    match field.name:
        case "domain":
            return list(domains)
        case "hour":
            return [f"{code - 1}:00" for code in range(1, field.size)]
        case "position":
            return [str(code) if code < POSITIONS else f"{POSITIONS} or later" for code in range(1, field.size)]
    return [f"part {code}" for code in range(1, field.size)]


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


def information(shown: Counts, positive: Counts) -> float:
    """I(cell; label) in nats of cells (P,) with so many rows and positives each, less the bias
    (cells − 1)(classes − 1) / 2N."""
    shown, positive = shown[shown > 0], positive[shown > 0]
    joint = np.stack([shown - positive, positive])
    total = joint.sum()
    if total == 0:
        return 0.0
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0) / total
    some = joint > 0
    found = (joint[some] * np.log(joint[some] / expected[some])).sum() / total
    classes = int((joint.sum(axis=1) > 0).sum())
    return float(found - (len(shown) - 1) * (classes - 1) / (2 * total))


def interaction(cells: pl.DataFrame, groups: Mapping[str, pl.DataFrame]) -> tuple[float, float]:
    """What pairs tell of the 0/1 labels of their rows beyond the two parts' own effects, in nats a row, less its bias;
    and how many standard deviations that lies above nothing.

    `cells` has the columns left, right (codes), shown (rows) and positive. The model without interaction is fitted by
    iterative proportional fitting (Deming & Stephan, 1940). Rows of one value of a column that `groups` names are not
    taken for independent: its table has the same columns for each pair and value, of all rows or of a sample.
    """
    sides = [np.unique(cells[part], return_inverse=True)[1] for part in ("left", "right")]
    shown, positive = cells["shown"].to_numpy(), cells["positive"].to_numpy()
    found = np.stack([shown - positive, positive])
    if not found.sum(axis=1).all():
        return 0.0, 0.0
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
    rates = cells.select("left", "right", rate=pl.Series(expected[1] / shown))
    effect = 1 + sum(max(_design_effect(rates, group, by) - 1, 0) for by, group in groups.items())
    free = max(len(shown) - sum(int(side.max()) + 1 for side in sides) + 1, 0)
    return float((beyond - effect * free / 2) / shown.sum()), _deviations(found, expected, sides, effect)


def _deviations(found: Counts, expected: Floats, sides: list[Integers], effect: float) -> float:
    """How many standard deviations Pearson's statistic of counts (2, P) lies above its mean, were there no interaction,
    if it is `effect` times as great as that of independent rows."""
    open_ = expected.min(axis=0) > 0
    free = int(open_.sum()) - sum(len(np.unique(side[open_])) for side in sides) + 1
    if free <= 0 or not open_.any():
        return 0.0
    (no, yes), positive = expected[:, open_], found[1, open_]
    shown = no + yes
    spread = no * yes / shown
    statistic = ((positive - yes) ** 2 / spread).sum() / effect
    variance = free * np.mean(2 + 1 / spread - 6 / shown)
    if variance <= 0:
        return 0.0
    shape = 2 * free**2 / variance
    return float((np.cbrt(statistic / free) - 1 + 2 / (9 * shape)) * np.sqrt(9 * shape / 2))


def _design_effect(rates: pl.DataFrame, group: pl.DataFrame, by: str) -> float:
    """How many times greater the variance of the interaction's contrasts is than that of independent rows with these
    rates, if rows with one value of the column `by` are alike: what a user's rows have in common in all its cells goes
    to the parts' own effects and not to their interaction."""
    rate, shown = pl.col("rate"), pl.col("shown")
    told = group.join(rates, on=["left", "right"], maintain_order="left").filter(rate > 0, rate < 1)
    told = told.with_columns(rest=pl.col("positive") - shown * rate, spread=shown * rate * (1 - rate), whole=0)

    def squares(*margin: str) -> tuple[float, int]:
        """The squared residuals of the groups in a margin against its variance, and the size of the margin."""
        spread = told.group_by(margin, maintain_order=True).agg(pl.col("spread").sum())
        sums = told.group_by(by, *margin, maintain_order=True).agg(pl.col("rest").sum())
        sums = sums.join(spread, on=margin, maintain_order="left")
        return sums.select((pl.col("rest") ** 2 / pl.col("spread")).sum()).item(), spread.height

    margins = (("left", "right"), 1), (("left",), -1), (("right",), -1), (("whole",), 1)
    found, free = (sum(part) for part in zip(*(np.multiply(squares(*one), sign) for one, sign in margins), strict=True))
    return float(found / free) if free > 0 else 1.0


def _cells(rows: pl.LazyFrame, left: str, right: str, *by: str) -> pl.DataFrame:
    """The pairs of known codes among rows, and whose else `by` says: left, right, shown (rows), positive and last_seen,
    in the order of the pairs."""
    codes = [pl.col(f"code_{left}").alias("left"), pl.col(f"code_{right}").alias("right")]
    known = rows.filter(code > 0 for code in codes)
    counted = known.group_by(*codes, *by).agg(
        shown=pl.len().cast(pl.Int64),
        positive=(pl.col("label") > 0).sum().cast(pl.Int64),
        last_seen=pl.col("time").max(),
    )
    return counted.collect(engine="streaming").sort("left", "right", *by)


def _judge(cells: pl.DataFrame, groups: Mapping[str, pl.DataFrame], rows: int) -> dict[str, float]:
    """Measured on the rows where the cross says anything, then times their share of all the `rows`."""
    shown, positive = cells["shown"].to_numpy(), cells["positive"].to_numpy()
    told = {"information": np.arange(len(shown)), "left": cells["left"].to_numpy(), "right": cells["right"].to_numpy()}
    measured = {
        name: information(np.bincount(part, shown).astype(np.int64), np.bincount(part, positive).astype(np.int64))
        for name, part in told.items()
    }
    measured["interaction"], deviations = interaction(cells, groups)
    share = float(shown.sum() / max(rows, 1))
    scaled = {name: share * value for name, value in measured.items()}
    return {"pairs": len(shown), "share": share, **scaled, "deviations": deviations}


def _vocabulary(
    name: str, cells: pl.DataFrame, values: Mapping[str, pl.DataFrame], admit_after: int, evict_before: int
) -> tuple[Vocabulary, pl.DataFrame]:
    """The vocabulary of a cross, and which pair of codes has which of its codes."""
    left, _, right = name.partition(CROSS)
    one, other = values[left][cells["left"].to_numpy() - 1], values[right][cells["right"].to_numpy() - 1]
    fids = pl.Series("fid", pair_fids(name, one["fid"].to_numpy(), other["fid"].to_numpy()))
    seen = cells.select(fids, "last_seen", count="shown", value=one["value"] + f" {CROSS} " + other["value"])
    vocabulary = identity.admit(name, seen, admit_after=admit_after, evict_before=evict_before)
    pairs = cells.select("left", "right", fids)
    codes = pairs.join(vocabulary.table.select("fid", "code"), on="fid").sort("left", "right")
    return vocabulary, codes.select(pl.lit(name).alias("field"), "left", "right", "code").cast(CODES)  # type: ignore[arg-type]


def _role(name: str, fields: Mapping[str, Field]) -> Role:
    """The role of both parts; "cross" if they differ, or depend on the row."""
    left, _, right = name.partition(CROSS)
    roles = {fields[left].role, fields[right].role}
    return "user" if roles == {"user"} else "item" if roles == {"item"} else "cross"
