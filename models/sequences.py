"""Encoders of behaviour sequences: from a user's events, and possibly the candidate, to one vector.

An encoder is any module called with

* `query` (B, Q): the candidate, embedded as an event would be (so Q = D), for those encoders that look at it;
* `events` (S, D): all events of the batch, packed;
* `gap` (S,): each event's bucket of elapsed time;
* `row` (S,): the row each event belongs to, rows in order, old to new within a row;

that returns (B, D). A row without events gets zeros. Those here treat the events as a set; `models.recurrent` has
those that read them one after the other.

When requests are answered, many candidates have one history, and are asked for in one domain. An encoder that gains by
that has `shared`, which is called with an `asker` (B,) as well, ascending: the history of each candidate, to which
`row` then refers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from models.schema import Sequence

Factory = Callable[[int, Sequence], nn.Module]
"""Makes the encoder of a sequence whose events have D embedded numbers."""


def segment_sum(values: Float[Tensor, "S D"], row: Int[Tensor, " S"], rows: int) -> Float[Tensor, "rows D"]:
    """Sum of the values of each row; zeros for a row that has none."""
    return values.new_zeros(rows, values.shape[1]).index_add(0, row, values)


def sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The sum of the values (S, D) of each index in 0 … `size`-1: (size, D).

    Sorts, and then sums runs: on a CPU several times as fast as adding every value to where it belongs.
    """
    begin = index.bincount(minlength=size).cumsum(0).roll(1)
    begin[:1] = 0
    return functional.embedding_bag(sorting(index, size), values, begin, mode="sum")


def sorting(numbers: Tensor, size: int) -> Tensor:
    """The order that sorts numbers in 0 … `size`-1, stable; a radix sort, so the fewer bytes the better."""
    if size <= 1 << 8:
        return (numbers - (1 << 7)).to(torch.int8).argsort(stable=True)
    if size <= 1 << 16:
        return (numbers - (1 << 15)).to(torch.int16).argsort(stable=True)
    return numbers.to(torch.int32).argsort(stable=True)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(table)
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return sums(gradient, ctx.saved_tensors[0], ctx.size), None


def look_up(table: Float[Tensor, "V D"], index: Int[Tensor, " S"]) -> Float[Tensor, "S D"]:
    """Rows of a small table, each of them many times: with a gradient made of sums (`sums`)."""
    if not torch.is_grad_enabled():
        return table.index_select(0, index)
    return _LookUp.apply(table, index)  # type: ignore[no-any-return,no-untyped-call]


def segment_log_softmax(scores: Float[Tensor, " S"], row: Int[Tensor, " S"], rows: int) -> Float[Tensor, " S"]:
    """log softmax within each row's scores."""
    highest = scores.new_full((rows,), -math.inf).scatter_reduce(0, row, scores.detach(), "amax")
    shifted = scores - highest.index_select(0, row)
    total = segment_sum(shifted.exp()[:, None], row, rows).flatten()
    return shifted - total.log().index_select(0, row)


def segment_softmax(scores: Float[Tensor, " S"], row: Int[Tensor, " S"], rows: int) -> Float[Tensor, " S"]:
    """The softmax of each row's scores."""
    return segment_log_softmax(scores, row, rows).exp()


def of_each(row: Int[Tensor, " S"], asker: Int[Tensor, " B"]) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
    """The events of histories that are shared, once for each candidate: the event and the candidate of each."""
    count = row.bincount(minlength=int(asker.max()) + 1 if len(asker) else 0)
    lengths = count[asker]
    candidate = torch.arange(len(asker), device=row.device).repeat_interleave(lengths)
    first = (count.cumsum(0) - count)[asker] - (lengths.cumsum(0) - lengths)
    return torch.arange(len(candidate), device=row.device) + first[candidate], candidate


def apart(
    query: Float[Tensor, "B Q"], events: Float[Tensor, "S D"], row: Int[Tensor, " S"], asker: Int[Tensor, " B"]
) -> Iterator[tuple[Float[Tensor, "b Q"], Float[Tensor, "L D"]]]:
    """Each asker's candidates and events."""
    askers = int(asker[-1]) + 1 if len(asker) else 0
    if askers == 1:
        return iter([(query, events)])
    candidates, lengths = (index.bincount(minlength=askers).tolist() for index in (asker, row))
    return zip(query.split(candidates), events.split(lengths), strict=True)


def places(row: Int[Tensor, " S"], rows: int, length: int) -> Int[Tensor, " S"]:
    """Where the events stand when each row has `length` places next to each other.

    The last `length` events of a row fill its places from the left; an older one gets the number after the last place.
    """
    count = row.new_zeros(rows).index_add(0, row, torch.ones_like(row))
    first = count.cumsum(0) - count + (count - length).clamp(min=0)
    place = torch.arange(len(row), device=row.device) - first.index_select(0, row)
    return torch.where(place < 0, rows * length, row * length + place)


def pad(
    values: Shaped[Tensor, "S D"], place: Int[Tensor, " S"], rows: int, length: int
) -> Shaped[Tensor, "rows length D"]:
    """Packed values at their places, zeros where there is none."""
    width = values.shape[1]
    padded = values.new_zeros(rows * length + 1, width).index_copy(0, place, values)
    return padded[:-1].view(rows, length, width)


def unpad(padded: Shaped[Tensor, "rows length D"], place: Int[Tensor, " S"]) -> Shaped[Tensor, "S D"]:
    """Values packed again, zeros for those that had no place."""
    return functional.pad(padded.flatten(0, 1), (0, 0, 0, 1)).index_select(0, place)


def at_places(
    place: Int[Tensor, " S"],
    rows: int,
    length: int,
    events: Shaped[Tensor, "S D"],
    gap: Int[Tensor, " S"],
    row: Int[Tensor, " S"],
) -> tuple[Shaped[Tensor, "kept D"], Int[Tensor, " kept"], Int[Tensor, " kept"]]:
    """The events that have one of `length` places a row, their gaps and rows, in as many as there are places, so that
    the shape is known. Empty places belong to a row after the last."""
    owner = row.new_full((rows * length + 1,), rows).index_copy(0, place, row)[:-1]
    kept = pad(events, place, rows, length).flatten(0, 1)
    return kept, pad(gap[:, None], place, rows, length).flatten(), owner


def encoded(
    encoder: nn.Module,
    query: Float[Tensor, "B Q"],
    events: Float[Tensor, "S D"],
    gap: Int[Tensor, " S"],
    row: Int[Tensor, " S"],
) -> Float[Tensor, "B D"]:
    """What an encoder makes of events some of which belong to a row after the last (`at_places`)."""
    return encoder(functional.pad(query, (0, 0, 0, 1)), events, gap, row)[:-1]  # type: ignore[no-any-return]


class Pooling(nn.Module):
    """The mean or the sum of a row's events (Covington et al., Deep Neural Networks for YouTube Recommendations,
    RecSys 2016, §3).

    An embedding of the elapsed time is added to each event.
    """

    def __init__(self, width: int, sequence: Sequence, *, pooling: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "sum"):
            raise ValueError(f"pooling {pooling!r} is unknown; it is one of mean, sum")
        self.mean = pooling == "mean"
        self.gap = nn.Embedding(sequence.gaps, width)
        nn.init.normal_(self.gap.weight, std=0.01)

    def forward(
        self, query: Float[Tensor, "B Q"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        total = segment_sum(events + look_up(self.gap.weight, gap), row, len(query))
        if not self.mean:
            return total
        count = events.new_zeros(len(query)).index_add(0, row, torch.ones_like(row, dtype=events.dtype))
        return total / count.clamp(min=1)[:, None]

    def shared(
        self,
        query: Float[Tensor, "B Q"],
        events: Float[Tensor, "S D"],
        gap: Int[Tensor, " S"],
        row: Int[Tensor, " S"],
        asker: Int[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:
        return self(query, events, gap, row).index_select(0, asker)  # type: ignore[no-any-return]


class _BendAtZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return functional.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        below = x.clamp(max=0)
        if gradient.dtype == torch.float32:
            of_slope = torch.dot(gradient.flatten(), below.flatten())
        else:  # on a CPU one number after the other there
            of_slope = (gradient * below).sum()
        return torch.ops.aten.threshold_backward(gradient, x, 0).lerp_(gradient, slope), of_slope.view(1)


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with one a for all x (He et al., Delving Deep into Rectifiers, ICCV 2015), whose gradient
    is one dot product in float32; torch's writes a tensor of products first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
        slope = self.weight.to(x.dtype)
        if not torch.is_grad_enabled():
            return functional.prelu(x, slope)
        return _BendAtZero.apply(x, slope)  # type: ignore[no-any-return,no-untyped-call]


class Comparison(nn.Module):
    """DIN's weight MLP([q ‖ k ‖ q−k ‖ q⊙k]) of an event k for a candidate q (Zhou et al., Deep Interest Network,
    KDD 2018, §4.3).

    The paper has the outer product in the place of q−k and q⊙k; its authors' code has these two. `activation` makes
    the activation of `hidden` units.
    """

    def __init__(
        self, width: int, hidden: int, activation: Callable[[int], nn.Module] = lambda hidden: PReLU()
    ) -> None:
        super().__init__()
        self.compare = nn.Linear(4 * width, hidden)
        self.activation = activation(hidden)
        self.weigh = nn.Linear(hidden, 1)

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "S 1"]:
        """Each event's weight for its row's candidate.

        The first layer reads q ‖ k ‖ q⊙k; what it would do to q−k is added to its weights for q and k.
        """
        of_query, of_event, of_difference, of_product = self.compare.weight.chunk(4, dim=1)
        weight = torch.cat([of_query + of_difference, of_event - of_difference, of_product], dim=1)
        candidate = query.index_select(0, row)
        compared = torch.cat([candidate, events, candidate * events], dim=1)
        return self.weigh(self.activation(functional.linear(compared, weight, self.compare.bias)))  # type: ignore[no-any-return]

    def of_all(self, query: Float[Tensor, "B D"], events: Float[Tensor, "L D"]) -> Float[Tensor, "B L"]:
        """The weight of every event for every candidate: an event has a first layer of its own, which reads q alone."""
        of_query, of_event, of_difference, of_product = self.compare.weight.chunk(4, dim=1)
        hidden, width = of_query.shape
        weight = (events[:, None] * of_product + (of_query + of_difference)).view(-1, width)
        bias = functional.linear(events, of_event - of_difference, self.compare.bias).view(-1)
        compared = functional.linear(query, weight, bias).view(-1, hidden)
        return self.weigh(self.activation(compared)).view(len(query), len(events))  # type: ignore[no-any-return]


class ActivationUnit(nn.Module):
    """DIN's local activation unit: events are summed with the weights of `Comparison`, without a softmax.

    An embedding of the elapsed time is added to each event.
    """

    def __init__(
        self,
        width: int,
        sequence: Sequence,
        *,
        hidden: int = 32,
        activation: Callable[[int], nn.Module] = lambda hidden: PReLU(),
    ) -> None:
        super().__init__()
        self.gap = nn.Embedding(sequence.gaps, width)
        self.weights = Comparison(width, hidden, activation)
        nn.init.normal_(self.gap.weight, std=0.01)

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        events = events + look_up(self.gap.weight, gap)
        return segment_sum(self.weights(query, events, row) * events, row, len(query))

    def shared(
        self,
        query: Float[Tensor, "B D"],
        events: Float[Tensor, "S D"],
        gap: Int[Tensor, " S"],
        row: Int[Tensor, " S"],
        asker: Int[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:
        events = events + look_up(self.gap.weight, gap)
        parts = [self.weights.of_all(own, past) @ past for own, past in apart(query, events, row, asker)]
        return torch.cat([query[:0], *parts])


class TemporalInterest(nn.Module):
    """TIN's temporal interest module (Zhou et al., Temporal Interest Network for User Response Prediction, WWW 2024):
    Σ_i α(b̃_i, t̃) · (b̃_i ⊙ t̃) with b̃_i = b_i + p(Δt_i) and t̃ = t + p(0).

    α is the softmax over the history of ⟨b̃_i, t̃⟩ / √D. Row 0 of p is the candidate's own, row 1 + k that of bucket k.
    p(0) begins at 1, so that what the network first meets is the mean of the history and not the products of two small
    vectors, which would take long to say anything.
    """

    def __init__(self, width: int, sequence: Sequence) -> None:
        super().__init__()
        self.time = nn.Embedding(1 + sequence.gaps, width)
        nn.init.normal_(self.time.weight, std=0.01)
        with torch.no_grad():
            self.time.weight[0] = 1

    def forward(
        self, query: Float[Tensor, "B Q"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        rows, width = query.shape
        target = (query + self.time.weight[0]).index_select(0, row)
        paired = (events + self.time(1 + gap)) * target
        weights = segment_softmax(paired.sum(dim=1) / math.sqrt(width), row, rows)
        return segment_sum(weights[:, None] * paired, row, rows)

    def shared(
        self,
        query: Float[Tensor, "B Q"],
        events: Float[Tensor, "S D"],
        gap: Int[Tensor, " S"],
        row: Int[Tensor, " S"],
        asker: Int[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:
        target, events = query + self.time.weight[0], events + self.time(1 + gap)
        parts = [
            own * ((own @ past.T / math.sqrt(own.shape[1])).softmax(dim=1) @ past)
            for own, past in apart(target, events, row, asker)
        ]
        return torch.cat([query[:0], *parts])


class HardSearch(nn.Module):
    """SIM's general search unit (Pi et al., Search-based User Interest Modeling with Lifelong Sequential Behavior
    Data, CIKM 2020, §3.2) by category: each row's newest `keep` events of the candidate's `category`, one of the
    sequence's fields, go on to the encoder that `then` makes.

    They are found by their codes, before anything is embedded, so that a history may be long.
    """

    def __init__(
        self, width: int, sequence: Sequence, *, category: str, keep: int = 50, then: Factory = ActivationUnit
    ) -> None:
        super().__init__()
        self.keep = min(keep, sequence.length)
        self.column = sequence.fields.index(category)
        self.encoder = then(width, sequence)

    def find(
        self, query: Int[Tensor, "B F"], events: Int[Tensor, "S F"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> tuple[Int[Tensor, "kept F"], Int[Tensor, " kept"], Int[Tensor, " kept"]]:
        """The events, their gaps and rows, from the codes of the candidates and the events, as `at_places` has them."""
        rows = len(query)
        same = (events[:, self.column] == query[:, self.column].index_select(0, row)).long()
        count = row.new_zeros(rows).index_add(0, row, same)
        newer = count.cumsum(0).index_select(0, row) - same.cumsum(0)
        left = (row + 1) * self.keep - (self.keep - count).clamp(min=0).index_select(0, row) - 1 - newer
        place = torch.where((same > 0) & (newer < self.keep), left, rows * self.keep)
        return at_places(place, rows, self.keep, events, gap, row)

    def forward(
        self, query: Float[Tensor, "B Q"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        """What was found, embedded."""
        return encoded(self.encoder, query, events, gap, row)


class SoftSearch(nn.Module):
    """SIM's general search unit by likeness: each row's `keep` events with the greatest inner product with the
    candidate go on to the encoder that `then` makes, one that does not mind their order."""

    def __init__(self, width: int, sequence: Sequence, *, keep: int = 50, then: Factory = ActivationUnit) -> None:
        super().__init__()
        self.keep = min(keep, sequence.length)
        self.encoder = then(width, sequence)

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        rows = len(query)
        order = (query.index_select(0, row) * events).sum(dim=1).detach().argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        found = at_places(places(row, rows, self.keep), rows, self.keep, events[order], gap[order], row)
        return encoded(self.encoder, query, *found)


class LongAndShort(nn.Module):
    """SIM's two histories (§3.3 there): what the search finds in all of it, plus what the encoder that `then` makes
    says of the newest `recent` events, whatever they are.

    The search is the hard one, or, of a sequence that does not have the field `category`, the soft one.
    """

    def __init__(
        self,
        width: int,
        sequence: Sequence,
        *,
        category: str = "category",
        keep: int = 50,
        recent: int = 20,
        then: Factory = ActivationUnit,
    ) -> None:
        super().__init__()
        self.recent = min(recent, sequence.length)
        self.long: HardSearch | SoftSearch
        if category in sequence.fields:
            self.long = HardSearch(width, sequence, category=category, keep=keep, then=then)
        else:
            self.long = SoftSearch(width, sequence, keep=keep, then=then)
        self.short = then(width, sequence)

    def find(
        self, query: Int[Tensor, "B F"], events: Int[Tensor, "S F"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> tuple[Int[Tensor, "kept F"], Int[Tensor, " kept"], Int[Tensor, " kept"]]:
        """What the hard search finds and after it the newest events; all events where the search is the soft one."""
        if isinstance(self.long, SoftSearch):
            return events, gap, row
        found = self.long.find(query, events, gap, row)
        kept, ages, owner = (
            torch.cat(both) for both in zip(found, self._newest(len(query), events, gap, row), strict=True)
        )
        return kept, ages, owner

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        """From what was found, embedded."""
        if isinstance(self.long, SoftSearch):
            newest = self._newest(len(query), events, gap, row)
            return self.long(query, events, gap, row) + encoded(self.short, query, *newest)  # type: ignore[no-any-return]
        cut = len(query) * self.long.keep
        long = self.long(query, events[:cut], gap[:cut], row[:cut])
        return long + encoded(self.short, query, events[cut:], gap[cut:], row[cut:])  # type: ignore[no-any-return]

    def _newest(
        self, rows: int, events: Shaped[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return at_places(places(row, rows, self.recent), rows, self.recent, events, gap, row)
