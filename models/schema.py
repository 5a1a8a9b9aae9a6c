"""What a model is told about its input: fields, numbers, sequences, labels and domains."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Literal

Role = Literal["user", "item", "context", "cross"]


@dataclass(frozen=True)
class Field:
    """A categorical feature with codes 0 … size-1, where 0 stands for unknown."""

    name: str
    size: int
    role: Role


@dataclass(frozen=True)
class Number:
    """A numeric feature; `mean` and `std` were taken from the training rows."""

    name: str
    role: Role
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Sequence:
    """A user's last `length` events of one behaviour. Each event has a code for every one of `fields`, which share
    the tables of the schema's fields of the same name, and a time gap in one of `gaps` buckets."""

    name: str
    fields: tuple[str, ...]
    length: int
    gaps: int


@dataclass(frozen=True)
class Encoding:
    """What `models.encodings` turns into an integer from 0 to `maximum` and embeds, beside what else the models see.

    It is the number with that name, of which `low` is 0 and `high` is `maximum`; or, if `number` is empty, the items'
    content vector, of which the integer is a hash of as many bits as `maximum` has.
    """

    number: str = ""
    maximum: int = 100
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Schema:
    """The input and output of a model.

    A batch of B rows is a dictionary of tensors:

    * `fields` (B, F) int64: rows of the fused table (a field's code plus its offset), in the order of `fields`;
    * `numbers` (B, M) float32, raw, in the order of `numbers`;
    * `domain` (B,) int64 in 0 … P-1;
    * for each sequence `s`, packed over its S events, rows in order, old to new within a row:
      `s.fields` (S, F_s) int64 rows of the fused table, `s.gap` (S,) int64, `s.row` (S,) int64 in 0 … B-1;
    * `asker` (B,) int64, ascending from 0, if rows have their histories, and their domain, in common: which of them a
      row has; `s.row` then counts these;
    * `content` (B, `content`) float32, the items' content vectors, if `encodings` or a model asks for them.

    `durations` are what the log knows the seconds of; a label of one of these names is no 0/1 but seconds.
    """

    fields: tuple[Field, ...]
    numbers: tuple[Number, ...]
    sequences: tuple[Sequence, ...]
    labels: tuple[str, ...]
    domains: tuple[str, ...]
    encodings: tuple[Encoding, ...] = ()
    content: int = 0
    durations: tuple[str, ...] = ()

    @property
    def offsets(self) -> tuple[int, ...]:
        """Each field's first row in the fused table."""
        return (0, *accumulate(field.size for field in self.fields))[:-1]

    @property
    def table_size(self) -> int:
        return sum(field.size for field in self.fields)

    def positions(self, *roles: Role) -> list[int]:
        """Columns of `fields` that have one of the roles."""
        return [i for i, field in enumerate(self.fields) if field.role in roles]

    def number_positions(self, *roles: Role) -> list[int]:
        """Columns of `numbers` that have one of the roles."""
        return [i for i, number in enumerate(self.numbers) if number.role in roles]

    def position(self, name: str) -> int:
        """Column of the field with this name."""
        return [field.name for field in self.fields].index(name)

    def number_position(self, name: str) -> int:
        """Column of the number with this name."""
        return [number.name for number in self.numbers].index(name)

    def encoding_role(self, encoding: Encoding) -> Role:
        """Whose the encoding is: its number's, or the item's, as the content."""
        return self.numbers[self.number_position(encoding.number)].role if encoding.number else "item"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        raw = json.loads(text)
        return cls(
            fields=tuple(Field(**field) for field in raw["fields"]),
            numbers=tuple(Number(**number) for number in raw["numbers"]),
            sequences=tuple(Sequence(**{**seq, "fields": tuple(seq["fields"])}) for seq in raw["sequences"]),
            labels=tuple(raw["labels"]),
            domains=tuple(raw["domains"]),
            encodings=tuple(Encoding(**encoding) for encoding in raw.get("encodings", ())),
            content=raw.get("content", 0),
            durations=tuple(raw.get("durations", ())),
        )
