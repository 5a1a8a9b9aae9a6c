"""Encodings of numbers and of content vectors: an integer, and an embedding of its digits.

Both are told about by the schema's `encodings`, so that every ranker whose input is `models.layers.Inputs` has them
(Pan et al., Ads Recommendation in a Collapsed and Entangled World, KDD 2024, §3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.schema import Encoding, Schema


class NumeralSystems(nn.Module):
    """Multiple numeral systems encoding (§3.2): an integer from 0 to `maximum` is written in every base, each digit
    has an embedding, and all are summed. Greater integers count as `maximum`.

    Each place of a numeral has its own table, or, unless `position_aware`, all places of a base share one. Numerals
    have as many digits as `maximum` needs, with leading zeros, or as many as `digits` says, one number for each base.
    """

    powers: Tensor
    bases: Tensor
    offsets: Tensor

    def __init__(
        self,
        width: int,
        maximum: int,
        bases: Sequence[int] = (2, 3, 10),
        *,
        position_aware: bool = True,
        digits: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.maximum = maximum
        digits = digits or [number_of_digits(maximum, base) for base in bases]
        places = [(base, base**i) for base, count in zip(bases, digits, strict=True) for i in reversed(range(count))]
        if position_aware:
            sizes = [min(base, maximum // power + 1) for base, power in places]
            offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        else:
            sizes = list(bases)
            offsets = [sum(sizes[: sizes.index(base)]) for base, _ in places]
        self.register_buffer("powers", torch.tensor([power for _, power in places]))
        self.register_buffer("bases", torch.tensor([base for base, _ in places]))
        self.register_buffer("offsets", torch.tensor(offsets))
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.normal_(self.table.weight, std=0.01)

    def digits(self, integers: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape places"]:
        """The numerals of all bases next to each other, each from its highest digit on."""
        return integers.clamp(max=self.maximum)[..., None] // self.powers % self.bases

    def forward(self, integers: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        return self.table(self.digits(integers) + self.offsets).sum(dim=-2)  # type: ignore[no-any-return]


def number_of_digits(integer: int, base: int) -> int:
    count = 1
    while integer := integer // base:
        count += 1
    return count


class Levels(nn.Module):
    """A number as one of the integers 0 … `maximum`, at equal steps from `low` to `high`, then `NumeralSystems`.

    This is how a similarity that an outside model sees enters (§3.3), in place of that model's vectors.
    """

    def __init__(self, width: int, maximum: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.maximum = maximum
        self.low = low
        self.high = high
        self.encode = NumeralSystems(width, maximum)

    def forward(self, numbers: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        share = (numbers - self.low) / (self.high - self.low)
        return self.encode((share.clamp(0, 1) * self.maximum).round().long())  # type: ignore[no-any-return]


class HashID(nn.Module):
    """A content vector as the integer of its signs' bits before random hyperplanes (§3.2), then `NumeralSystems`.

    Alike vectors share bits, as running ids do not. The zero vector, of an item without content, is 0.
    """

    planes: Tensor

    def __init__(self, width: int, content: int, bits: int = 16, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        # Double, so that neither autocast nor the batch's size turns a sign.
        self.register_buffer("planes", torch.randn(content, bits, generator=random, dtype=torch.float64))
        self.encode = NumeralSystems(width, 2**bits - 1)

    def integers(self, content: Float[Tensor, "B C"]) -> Int[Tensor, " B"]:
        bits = (content.double() @ self.planes > 0).long()
        return (bits << torch.arange(bits.shape[1], device=bits.device)).sum(dim=1)

    def forward(self, content: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        return self.encode(self.integers(content))  # type: ignore[no-any-return]


class Encodings(nn.Module):
    """One vector for each of the schema's encodings, next to each other."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.width = width * len(schema.encodings)
        self.columns = [schema.number_position(e.number) if e.number else None for e in schema.encodings]
        self.encoders = nn.ModuleList(_encoder(encoding, schema, width) for encoding in schema.encodings)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B width"]:
        sources = [batch["content"] if c is None else batch["numbers"][:, c] for c in self.columns]
        encoded = [encoder(source) for encoder, source in zip(self.encoders, sources, strict=True)]
        return torch.cat([batch["numbers"][:, :0], *encoded], dim=1)


def _encoder(encoding: Encoding, schema: Schema, width: int) -> nn.Module:
    if encoding.number:
        return Levels(width, encoding.maximum, encoding.low, encoding.high)
    if not schema.content:
        raise ValueError("the items have no content vectors to encode; name a number")
    return HashID(width, schema.content, encoding.maximum.bit_length())
