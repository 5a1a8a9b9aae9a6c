"""F10 as rows are read: two codes that have one code together. `crosses` says which pairs there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.schema import Schema
from pipeline.parquet import read_parquet

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FILE = "cross_codes.parquet"
CROSS = "*"

Codes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Pair:
    """The field `left*right`: `codes` (left's size, right's size) has the code of each admitted pair of codes."""

    left: str
    right: str
    codes: csr_array

    @property
    def name(self) -> str:
        return f"{self.left}{CROSS}{self.right}"

    @classmethod
    def of(cls, name: str, sizes: Mapping[str, int], left: Codes, right: Codes, codes: npt.NDArray[np.int32]) -> Pair:
        """From the admitted pairs (P,) in any order, and the sizes of the fields."""
        from scipy.sparse import csr_array

        first, _, second = name.partition(CROSS)
        return cls(first, second, csr_array((codes, (left, right)), shape=(sizes[first], sizes[second])))

    def encode(self, left: Codes, right: Codes) -> npt.NDArray[np.int32]:
        """The codes (N,) of pairs of codes; 0 for a pair that was not admitted."""
        if not len(left):
            return np.zeros(0, np.int32)
        codes: npt.NDArray[np.int32] = self.codes[left, right]
        return codes


def way_out(field: str) -> str:
    """How the settings are rid of a field, as a part of a message."""
    if CROSS in field:
        return "take the pair out of features.crosses.pairs, or one of its columns out of features.crosses.columns"
    return "take the column out of [features]"


def read(folder: Path, schema: Schema) -> tuple[Pair, ...]:
    """The crosses that are computed row by row, those with role "cross", in the order of the schema's fields."""
    crosses = [schema.fields[place].name for place in schema.positions("cross")]
    if not crosses:
        return ()
    table = read_parquet(folder / FILE)
    columns = [table[column].to_numpy() for column in ("left", "right", "code")]
    sizes = {field.name: field.size for field in schema.fields}
    owns = (table["field"].to_numpy() == name for name in crosses)
    return tuple(
        Pair.of(name, sizes, *(column[own] for column in columns)) for name, own in zip(crosses, owns, strict=True)
    )


def crossed(
    pairs: Iterable[Pair],
    users: dict[str, npt.NDArray[Any]],
    items: dict[str, npt.NDArray[Any]],
    user: Codes,
    item: Codes,
    context: Mapping[str, Codes],
) -> dict[str, npt.NDArray[np.int32]]:
    """Codes (N,) of each pair for rows of these users and items in this context; `users` and `items` have `code_…`
    columns by row number."""

    def part(name: str) -> Codes:
        for table, row in ((users, user), (items, item)):
            if (column := table.get(f"code_{name}")) is not None:
                return column[row]
        return context.get(name, np.zeros(len(user), np.int32))

    return {pair.name: pair.encode(part(pair.left), part(pair.right)) for pair in pairs}
