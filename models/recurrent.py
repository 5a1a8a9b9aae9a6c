"""Encoders that read a behaviour sequence from old to new (`models.sequences` says what an encoder is).

They read at most the `length` last events of the schema's sequence, in a loop of that many steps. Both have something
of their own to minimise: `with_loss` gives it beside the vector.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.schema import Sequence
from models.sequences import Comparison, pad, places, segment_softmax, segment_sum, unpad


class GRU(nn.Module):
    """One step: h ← (1 − a u) ⊙ h + a u ⊙ tanh(W x + r ⊙ U h + b), with an update gate u, a reset gate r, and an
    attention a that is 1 unless one is given."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(into, 3 * width)
        self.of_state = nn.Linear(width, 3 * width, bias=False)

    def step(self, given: Float[Tensor, "B _"], state: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The next state; `given` is `of_input` of x."""
        update, reset, candidate = given.chunk(3, dim=1)
        past_update, past_reset, past_candidate = self.of_state(state).chunk(3, dim=1)
        candidate = (candidate + (reset + past_reset).sigmoid() * past_candidate).tanh()
        return state + (update + past_update).sigmoid() * (candidate - state)  # type: ignore[no-any-return]

    def forward(self, given: Float[Tensor, "B L _"], attention: Float[Tensor, "B L 1"]) -> Float[Tensor, "B L D"]:
        """The states after each of L steps from zero. Where the attention is 0 the state stays."""
        with torch.autocast(given.device.type, enabled=False):
            steps = (one.to(self.of_state.weight.dtype).transpose(0, 1) for one in (given, attention))
            states: Tensor = _Recurrence.apply(*steps, self.of_state.weight)  # type: ignore[no-untyped-call]
        return states.transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """The steps of a GRU over (L, B, 3D) of given, (L, B, 1) of attention and U (3D, D).

    All that backward needs of a step is known before it begins but the gradient of the step's state, so that its loop
    is one product a step, and the gradient of U one product for all.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, attention: Tensor, weight: Tensor) -> Tensor:
        of_gates, of_candidate = given.tensor_split([2 * weight.shape[1]], dim=2)
        state = given.new_zeros(given.shape[1], weight.shape[1])
        states, gates, candidates, pasts = [state], [], [], []
        for to_gates, to_candidate, weighed in zip(of_gates, of_candidate, attention, strict=True):
            past_gates, past = (state @ weight.T).tensor_split([to_gates.shape[1]], dim=1)
            gate = (to_gates + past_gates).sigmoid_()
            update, reset = gate.chunk(2, dim=1)
            candidate = torch.addcmul(to_candidate, reset, past).tanh_()
            state = torch.lerp(state, candidate, weighed * update)
            states.append(state)
            gates.append(gate)
            candidates.append(candidate)
            pasts.append(past)
        every = torch.stack(states)
        ctx.save_for_backward(attention, weight, every, torch.stack(gates), torch.stack(candidates), torch.stack(pasts))
        return every[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, weight, states, gates, candidate, past = ctx.saved_tensors
        (update, reset), before = gates.chunk(2, dim=2), states[:-1]
        towards = candidate - before
        of_update = towards * attention * update * (1 - update)
        of_candidate = attention * update * (1 - candidate.square())
        of_reset = of_candidate * past * reset * (1 - reset)
        to_past = torch.stack([of_update, of_reset, of_candidate * reset], dim=2)
        stays = 1 - attention * update
        arriving, leaving = [], gradient.new_zeros(gradient.shape[1:])
        for step in range(len(gradient) - 1, -1, -1):
            leaving = leaving + gradient[step]
            arriving.append(leaving)
            product = (to_past[step] * leaving[:, None]).flatten(1)
            leaving = torch.addmm(stays[step] * leaving, product, weight)
        of_state = torch.stack(arriving[::-1])
        to_gates = (to_past * of_state[:, :, None]).flatten(2)
        to_given = torch.cat([to_gates[:, :, : 2 * weight.shape[1]], of_candidate * of_state], dim=2)
        to_attention = (of_state * towards * update).sum(dim=2, keepdim=True)
        return to_given, to_attention, to_gates.flatten(0, 1).T @ before.flatten(0, 1)


class InterestEvolution(nn.Module):
    """DIEN's two layers (Zhou et al., Deep Interest Evolution Network, AAAI 2019): a GRU makes an interest of every
    event; a second one, whose update gate is scaled by the candidate's attention to the interest (AUGRU), follows
    those that bear on the candidate.

    An embedding of the elapsed time is added to each event.
    """

    def __init__(self, width: int, sequence: Sequence) -> None:
        super().__init__()
        self.length = sequence.length
        self.gap = nn.Embedding(sequence.gaps, width)
        self.extractor = GRU(width, width)
        self.attend = nn.Linear(width, width, bias=False)
        self.evolution = GRU(width, width)
        nn.init.normal_(self.gap.weight, std=0.01)

    def interests(
        self, events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"], rows: int
    ) -> Float[Tensor, "S D"]:
        """The extractor's state after each event: the user's side, without the candidate."""
        place = places(row, rows, self.length)
        given = pad(self.extractor.of_input(events + self.gap(gap)), place, rows, self.length)
        return unpad(self.extractor(given, torch.ones_like(given[:, :, :1])), place)

    def evolve(
        self, query: Float[Tensor, "B D"], interests: Float[Tensor, "S D"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        """The last state of the AUGRU; where a place is empty, so is the attention, and the state stays."""
        rows = len(query)
        place = places(row, rows, self.length)
        scores = (self.attend(query).index_select(0, row) * interests).sum(dim=1)
        attention = pad(segment_softmax(scores, row, rows)[:, None], place, rows, self.length)
        given = pad(self.evolution.of_input(interests), place, rows, self.length)
        return self.evolution(given, attention)[:, -1]  # type: ignore[no-any-return]

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        return self.evolve(query, self.interests(events, gap, row, len(query)), row)

    def with_loss(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, ""]]:
        """The same, and how badly the interests foretell the next events."""
        interests = self.interests(events, gap, row, len(query))
        return self.evolve(query, interests, row), next_event_loss(interests, events, row)


def next_event_loss(
    interests: Float[Tensor, "S D"], events: Float[Tensor, "S D"], row: Int[Tensor, " S"]
) -> Float[Tensor, ""]:
    """−log σ(⟨h_t, e_{t+1}⟩) − log(1 − σ(⟨h_t, ê_{t+1}⟩)), the mean over all events that have a next one.

    ê_{t+1} is the event half a batch away; an event for which that is the same as the next does not count.
    """
    state, positive, negative = interests[:-1], events[1:], events.roll(len(events) // 2, dims=0)[1:]
    counts = (row[1:] == row[:-1]) & (positive != negative).any(dim=1)
    losses = functional.softplus(-(state * positive).sum(dim=1)) + functional.softplus((state * negative).sum(dim=1))
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)


class InterestMemory(nn.Module):
    """MIMN's memory (Pi et al., Practice on Long Sequential User Behavior Modeling, KDD 2019, §4): a neural Turing
    machine writes every event into `slots` vectors, and the candidate reads them as DIN reads events, in a comparison
    of `hidden` units.

    With `balance` a write is moved to other slots by P = softmax(W_g ⊙ g), g being how much has been written to each,
    and the loss is how unevenly the slots are used. An embedding of the elapsed time is added to each event.
    """

    def __init__(
        self, width: int, sequence: Sequence, *, slots: int = 4, hidden: int = 32, balance: bool = True
    ) -> None:
        super().__init__()
        self.length = sequence.length
        self.gap = nn.Embedding(sequence.gaps, width)
        self.start = nn.Parameter(0.1 * torch.randn(slots, width))
        self.controller = GRU(2 * width, width)
        self.heads = nn.Linear(width, 4 * width)
        self.transfer = nn.Parameter(slots * torch.eye(slots)) if balance else None
        self.weights = Comparison(width, hidden)
        nn.init.normal_(self.gap.weight, std=0.01)

    def memory(
        self, events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"], rows: int
    ) -> tuple[Float[Tensor, "rows slots D"], Float[Tensor, "rows slots"]]:
        """The slots after all events, and how much was written to each: the user's side, without the candidate.

        The memory of a row without events is zero.
        """
        place = places(row, rows, self.length)
        given = pad(events + self.gap(gap), place, rows, self.length)
        present = pad(torch.ones_like(events[:, :1]), place, rows, self.length)
        memory = self.start * present[:, :1]
        usage = memory.new_zeros(memory.shape[:2])
        state = read = torch.zeros_like(given[:, 0])
        for event, here in zip(given.unbind(dim=1), present.unbind(dim=1), strict=True):
            state = self.controller.step(self.controller.of_input(torch.cat([event, read], dim=1)), state)
            read_key, write_key, erase, add = self.heads(state).chunk(4, dim=1)
            write = here * self.balanced(address(write_key, memory), usage)
            memory = memory + write[..., None] * (add.tanh()[:, None] - erase.sigmoid()[:, None] * memory)
            usage = usage + write
            read = (address(read_key, memory)[..., None] * memory).sum(dim=1)
        return memory, usage

    def balanced(self, write: Float[Tensor, "B slots"], usage: Float[Tensor, "B slots"]) -> Float[Tensor, "B slots"]:
        """The write weights after what each slot hands on to others."""
        if self.transfer is None:
            return write
        shares = (self.transfer * usage[:, None]).softmax(dim=-1)
        return (write[..., None] * shares).sum(dim=1)

    def read(self, query: Float[Tensor, "B D"], memory: Float[Tensor, "B slots D"]) -> Float[Tensor, "B D"]:
        """What the candidate finds in the memory."""
        rows, slots, _ = memory.shape
        row = torch.arange(rows, device=memory.device).repeat_interleave(slots)
        packed = memory.flatten(0, 1)
        return segment_sum(self.weights(query, packed, row) * packed, row, rows)

    def forward(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "B D"]:
        return self.read(query, self.memory(events, gap, row, len(query))[0])

    def with_loss(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], gap: Int[Tensor, " S"], row: Int[Tensor, " S"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, ""]]:
        """The same, and Σ (g − mean g)² over the slots, the mean over the rows."""
        memory, usage = self.memory(events, gap, row, len(query))
        uneven = (usage - usage.mean(dim=1, keepdim=True)).square().sum()
        return self.read(query, memory), uneven / max(len(query), 1)


def address(key: Float[Tensor, "B D"], memory: Float[Tensor, "B slots D"]) -> Float[Tensor, "B slots"]:
    """Where a key points: the softmax of its cosines with the slots."""
    return functional.cosine_similarity(key[:, None], memory, dim=-1).softmax(dim=-1)
