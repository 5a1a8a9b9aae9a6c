"""Tables of embeddings of which every process holds some rows: those that `Shard(0)` of a DTensor would give it.

DTensor's own embedding gathers the codes of all processes, scatters vectors for every one of them, and makes the
gradient of the whole shard. Here each process asks for the different rows of its part of the batch (Naumov et al.,
Deep Learning Recommendation Model, 2019, §4, exchange pooled ones in the same way), and the gradient stays sparse, so
that a step of a row-wise optimiser costs what the batch looks up, wherever the rows lie.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import distributed as dist

from models import processes
from models.rowwise import distinct
from models.sequences import look_up

BLOCK = 1 << 20


def held(size: int, place: int) -> range:
    """Which of so many rows the process at this place holds."""
    most = -(-size // processes.count())
    return range(min(place * most, size), min((place + 1) * most, size))


def embedding(size: int, width: int, std: float) -> nn.Embedding:
    """A table of `size` rows, of which this process has its own alone, with the values that they would have in one
    process: no more than these and a block is ever in memory."""
    rows = held(size, processes.place())
    drawn(rows, size, width, 1.0)  # what `nn.Embedding` draws when it makes the whole table
    return nn.Embedding(len(rows), width, _weight=drawn(rows, size, width, std))


def drawn(rows: range, size: int, width: int, std: float) -> Float[Tensor, "rows width"]:
    """These rows of a table of normal numbers, equal to `torch.empty(size, width).normal_(std=std)[rows]`."""
    kept = torch.empty(len(rows) * width)
    first, last = rows.start * width, rows.stop * width
    blocks = max(1, size * width // BLOCK)
    for number in range(blocks):
        begin = number * BLOCK
        end = size * width if number + 1 == blocks else begin + BLOCK
        block = torch.empty(end - begin).normal_(std=std)
        low, high = max(begin, first), min(end, last)
        if low < high:
            kept[low - first : high - first] = block[low - begin : high - begin]
    return kept.view(len(rows), width)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.lengths = sent, received
        vectors = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(vectors, rows, received, sent)
        return vectors

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.lengths
        back = gradient.new_empty(sum(sent), gradient.shape[1])
        dist.all_to_all_single(back, gradient / processes.count(), sent, received)
        return back, None, None


def vectors(table: nn.Embedding, size: int, codes: Int[Tensor, " S"]) -> Float[Tensor, "S D"]:
    """The embeddings of any codes in 0 … `size`-1, of a table made by `embedding`. All processes have to ask at once.

    The gradient of the rows held here is the average over the processes, as that of parameters which all of them have.
    """
    if processes.count() == 1:
        return table(codes)  # type: ignore[no-any-return]
    asked = distinct(codes, size)
    ends = torch.tensor([held(size, place).stop for place in range(processes.count())], device=codes.device)
    until = torch.searchsorted(asked, ends)
    asking = until.diff(prepend=until.new_zeros(1))
    asked_for = torch.empty_like(asking)
    dist.all_to_all_single(asked_for, asking)
    given, taken = asked_for.tolist(), asking.tolist()
    wanted = asked.new_empty(sum(given))
    dist.all_to_all_single(wanted, asked, given, taken)
    rows = _Exchange.apply(table(wanted - held(size, processes.place()).start), given, taken)  # type: ignore[no-untyped-call]
    number = torch.empty(size, dtype=torch.int32, device=codes.device)
    number[asked] = torch.arange(len(asked), dtype=torch.int32, device=codes.device)
    return look_up(rows, number[codes].long())


def whole(part: Tensor, size: int) -> Float[Tensor, "size D"] | None:
    """The table of which this process holds a part, in the memory of the first process's host; None in all others."""
    if processes.place() > 0:
        dist.send(part.contiguous(), dst=0)
        return None
    parts = [part.cpu()]
    for place in range(1, processes.count()):
        other = part.new_empty(len(held(size, place)), *part.shape[1:])
        dist.recv(other, src=place)
        parts.append(other.cpu())
    return torch.cat(parts)
