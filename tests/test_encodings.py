"""Encodings of numbers and content vectors against the worked example, numbers on paper and plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import RANKERS
from models.encodings import Encodings, HashID, Levels, NumeralSystems
from models.layers import FieldVectors, Inputs
from models.schema import Encoding, Field, Number, Schema, Sequence
from pipeline import config

SCHEMA = Schema(
    fields=(Field("user_id", 3, "user"), Field("item_id", 4, "item")),
    numbers=(Number("age", "user", mean=30.0, std=10.0), Number("clicked_content_similarity", "cross")),
    sequences=(Sequence("clicked", ("item_id",), 5, 2),),
    labels=("click",),
    domains=("home",),
    encodings=(
        Encoding("age", maximum=120, high=120.0),
        Encoding("clicked_content_similarity", low=-1.0),
        Encoding(maximum=255),
    ),
    content=4,
)
BATCH = {
    "fields": torch.tensor([[1, 3], [2, 4]]),
    "numbers": torch.tensor([[51.0, 0.5], [30.0, -1.0]]),
    "domain": torch.tensor([0, 0]),
    "content": torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]]),
    "clicked.fields": torch.tensor([[3], [6]]),
    "clicked.gap": torch.tensor([0, 1]),
    "clicked.row": torch.tensor([0, 0]),
}


def numeral(integer: int, base: int, digits: int) -> list[int]:
    return [integer // base**i % base for i in range(digits)][::-1]


def test_the_worked_example() -> None:
    """51 is 110011 in base 2 and 01220 in base 3.

    2 · E2[0] + 4 · E2[1] = [2.2, 2.8, 3.4, 4.0], and 2 · E3[0] + E3[1] + 2 · E3[2] = [.25, .30, .35, .40].
    """
    encode = NumeralSystems(4, 63, bases=(2, 3), position_aware=False, digits=(6, 5))
    of_two = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]
    of_three = [[0.01, 0.02, 0.03, 0.04], [0.05, 0.06, 0.07, 0.08], [0.09, 0.10, 0.11, 0.12]]
    encode.table.weight.data = torch.tensor(of_two + of_three)
    assert encode.digits(torch.tensor(51)).tolist() == [1, 1, 0, 0, 1, 1, 0, 1, 2, 2, 0]
    torch.testing.assert_close(encode(torch.tensor(51)), torch.tensor([2.45, 3.10, 3.75, 4.40]))


@pytest.mark.parametrize("position_aware", [True, False])
def test_numeral_systems_against_a_loop(position_aware: bool) -> None:
    """999 has 10 binary, 7 ternary and 3 decimal digits, of which the highest ternary one is at most 1."""
    encode = NumeralSystems(3, 999, position_aware=position_aware)
    table, integers = encode.table.weight, [0, 1, 51, 998, 999, 5000]
    got = encode(torch.tensor(integers).view(2, 3))
    assert got.shape == (2, 3, 3)
    for integer, vector in zip(integers, got.flatten(0, 1), strict=True):
        expected, first = torch.zeros(3), 0
        for base, digits in ((2, 10), (3, 7), (10, 3)):
            for place, digit in enumerate(numeral(min(integer, 999), base, digits)):
                expected = expected + table[first + digit]
                if position_aware:
                    first += 2 if (base, place) == (3, 0) else base
            first += 0 if position_aware else base
        torch.testing.assert_close(vector, expected)
    assert len(table) == (20 + 20 + 30 if position_aware else 15)


def test_every_digit_that_can_occur_learns_and_there_are_no_others() -> None:
    encode = NumeralSystems(2, 137)
    encode(torch.arange(138)).sum().backward()
    assert encode.table.weight.grad.all()


def test_position_aware_encodings_tell_numbers_apart_that_share_their_digits() -> None:
    """12 and 21 in base 10."""
    for position_aware in (True, False):
        one, other = NumeralSystems(4, 99, (10,), position_aware=position_aware)(torch.tensor([12, 21]))
        assert torch.equal(one, other) != position_aware


def test_levels_on_paper() -> None:
    """From −1 to 1 in 100 steps; what lies outside counts as the end."""
    levels = Levels(4, 100, low=-1.0)
    numbers, integers = torch.tensor([-1.0, -0.98, 0.0, 0.5, 1.0, 7.0, -7.0]), [0, 1, 50, 75, 100, 100, 0]
    assert torch.equal(levels(numbers), levels.encode(torch.tensor(integers)))
    counts = Levels(4, 20, high=20.0)
    assert torch.equal(counts(torch.tensor([0.0, 7.0, 30.0])), counts.encode(torch.tensor([0, 7, 20])))


def test_hash_id_is_the_signs_before_the_planes() -> None:
    hash_id, content = HashID(4, 6, bits=8), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for vector, integer in zip(content, hash_id.integers(content).tolist(), strict=True):
        signs = [float(vector.double() @ hash_id.planes[:, i]) > 0 for i in range(8)]
        assert integer == sum(2**i for i in range(8) if signs[i])
    assert torch.equal(hash_id(content), hash_id.encode(hash_id.integers(content)))
    assert hash_id.integers(torch.zeros(1, 6)).tolist() == [0]


def test_hash_id_is_the_same_in_every_run_and_part_of_the_state() -> None:
    assert torch.equal(HashID(4, 6).planes, HashID(4, 6).planes)
    assert not torch.equal(HashID(4, 6).planes, HashID(4, 6, seed=1).planes)
    assert "planes" in HashID(4, 6).state_dict()


def test_alike_contents_share_more_bits() -> None:
    """The share of bits that differ is the angle over π: some 1 of 10 for near ones, a half for strangers."""
    random = torch.Generator().manual_seed(0)
    content, other = torch.randn(2, 500, 16, generator=random)
    near = content + 0.3 * torch.randn(500, 16, generator=random)
    hash_id = HashID(2, 16)

    def differing(a: Tensor, b: Tensor) -> float:
        bits = [(hash_id.integers(part)[:, None] >> torch.arange(16)) & 1 for part in (a, b)]
        return (bits[0] != bits[1]).float().mean().item()

    assert differing(content, near) == pytest.approx(0.093, abs=0.02)
    assert differing(content, other) == pytest.approx(0.5, abs=0.02)


def test_the_hash_is_not_disturbed_by_autocast() -> None:
    hash_id, content = HashID(2, 16), torch.randn(500, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hash_id.integers(content), hash_id.integers(content.float()))
        inside = hash_id.integers(content)
    assert torch.equal(inside, hash_id.integers(content))


def test_inputs_have_a_vector_for_each_encoding_between_histories_and_numbers() -> None:
    """51 of 120, ½ of [−1, 1] as 75 of 100, and the hash of the content."""
    inputs, plain = Inputs(SCHEMA, 2).eval(), Inputs(replace(SCHEMA, encodings=()), 2).eval()
    assert inputs.width == plain.width + 6
    age, cosine, content = inputs.encodings.encoders
    for encoder in (age, cosine, content):
        nn.init.normal_(encoder.encode.table.weight)
    vectors = [
        age.encode(torch.tensor([51, 30])),
        cosine.encode(torch.tensor([75, 0])),
        content.encode(content.integers(BATCH["content"])),
    ]
    x, numbers = inputs(BATCH), inputs.numbers(BATCH["numbers"])
    torch.testing.assert_close(x[:, 6:], torch.cat([*vectors, numbers], dim=1), atol=1e-4, rtol=1e-4)
    assert torch.equal(FieldVectors(SCHEMA, 2)(x)[:, 3:6].flatten(1), x[:, 6:12])
    assert FieldVectors(SCHEMA, 2).roles == ("user", "item", "user", "user", "cross", "item", "user", "cross")


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_takes_them_by_the_schema_alone(name: str) -> None:
    """Those that are linear in codes and numbers have none."""
    model = RANKERS[name](SCHEMA).eval()
    logits = model(BATCH)
    assert logits.shape == (2, 1)
    logits.sum().backward()
    encodings = [part for part in model.modules() if isinstance(part, Encodings)]
    assert encodings or name in ("lr", "gbdt_lr")
    for encoder in (one for part in encodings for one in part.encoders):
        assert encoder.encode.table.weight.grad.any()


def test_a_schema_with_encodings_survives_json_and_one_without_still_loads() -> None:
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
    old = SCHEMA.to_json().replace('"encodings"', '"forgotten"').replace('"content": 4', '"left": 4')
    assert Schema.from_json(old) == replace(SCHEMA, encodings=(), content=0)


def test_one_line_of_the_configuration_asks_for_them() -> None:
    line = 'fine.encodings=[{number = "clicked_content_similarity", low = -1.0}, {maximum = 65535}]'
    assert config.load(None, [line]).fine.encodings == (
        Encoding("clicked_content_similarity", low=-1.0),
        Encoding(maximum=65535),
    )


def test_content_to_hash_must_exist() -> None:
    with pytest.raises(ValueError, match="no content vectors"):
        Encodings(replace(SCHEMA, content=0), 2)
    with pytest.raises(ValueError, match="heigth"):
        Encodings(replace(SCHEMA, encodings=(Encoding("heigth"),)), 2)
