"""The schema: offsets of the fused table, roles, and JSON there and back."""

from __future__ import annotations

import pytest

from models.schema import Field, Number, Schema, Sequence

SCHEMA = Schema(
    fields=(Field("user_id", 10, "user"), Field("item_id", 5, "item"), Field("hour", 25, "context")),
    numbers=(Number("age", "user", 30.0, 10.0), Number("rate", "cross")),
    sequences=(Sequence("clicked", ("item_id",), 30, 16),),
    labels=("click", "like"),
    domains=("home", "search"),
)


def test_offsets_put_the_fields_one_after_the_other() -> None:
    assert SCHEMA.offsets == (0, 10, 15)
    assert SCHEMA.table_size == 40
    empty = Schema((), (), (), (), ())
    assert (empty.offsets, empty.table_size) == ((), 0)


def test_positions_by_role_and_name() -> None:
    assert SCHEMA.positions("user", "context") == [0, 2]
    assert SCHEMA.positions() == []
    assert SCHEMA.number_positions("cross") == [1]
    assert SCHEMA.position("hour") == 2
    with pytest.raises(ValueError, match="weather"):
        SCHEMA.position("weather")


@pytest.mark.parametrize("schema", [SCHEMA, Schema((), (), (), (), ())])
def test_json_there_and_back(schema: Schema) -> None:
    assert Schema.from_json(schema.to_json()) == schema
