"""Encoders of behaviour sequences, and the rankers that are known by them, against numbers on paper and plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import RANKERS
from models.layers import Inputs
from models.objective import objective
from models.rankers.din import Dice
from models.recurrent import GRU, InterestEvolution, InterestMemory, address, next_event_loss
from models.schema import Field, Number, Schema, Sequence
from models.sequences import (
    ActivationUnit,
    Factory,
    HardSearch,
    LongAndShort,
    Pooling,
    SoftSearch,
    TemporalInterest,
    pad,
    places,
    segment_softmax,
    unpad,
)
from pipeline.ranking.losses import masked_bce

CLICKED = Sequence("clicked", ("item_id", "category"), 5, 6)
ENCODERS: dict[str, Factory] = {
    "mean": Pooling,
    "sum": partial(Pooling, pooling="sum"),
    "din": ActivationUnit,
    "dice": partial(ActivationUnit, activation=Dice),
    "dien": InterestEvolution,
    "mimn": InterestMemory,
    "mimn_unbalanced": partial(InterestMemory, balance=False),
    "soft_sim": partial(SoftSearch, keep=2),
    "sim_then_tim": partial(SoftSearch, keep=2, then=TemporalInterest),
    "long_and_short": partial(LongAndShort, category="tag", keep=2, recent=2),
    "tim": TemporalInterest,
}
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def make(name: str, seed: int = 0) -> nn.Module:
    """An encoder of events with 4 numbers, 2 for each of 2 fields, whose parameters all have an effect."""
    torch.manual_seed(seed)
    encoder = ENCODERS[name](4, CLICKED)
    for parameter in encoder.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return encoder.eval()


def histories(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random events for rows of these lengths; the last two numbers, the category, are one of two."""
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    query, events = torch.randn(len(lengths), 4, generator=random), torch.randn(count, 4, generator=random)
    query[:, 2:], events[:, 2:] = 1.0, torch.randint(2, (count, 1), generator=random).float()
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return query, events, torch.randint(6, (count,), generator=random), row


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


@every_encoder
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [3, 0, 5, 1]])
def test_a_row_without_events_gives_zeros(name: str, lengths: list[int]) -> None:
    out = make(name)(*histories(lengths))
    assert out.shape == (len(lengths), 4)
    for length, vector in zip(lengths, out, strict=True):
        assert bool(vector.any()) == (length > 0)


@every_encoder
def test_a_row_gives_the_same_whatever_the_lengths_of_others(name: str) -> None:
    encoder, lengths = make(name), [3, 0, 5, 1, 2]
    query, events, gap, row = histories(lengths)
    together = encoder(query, events, gap, row)
    for i in range(len(lengths)):
        mine = row == i
        alone = encoder(query[i : i + 1], events[mine], gap[mine], row[mine] - i)
        torch.testing.assert_close(alone[0], together[i])


@every_encoder
def test_any_ranker_input_takes_any_encoder(name: str) -> None:
    schema = Schema((Field("item_id", 5, "item"), Field("category", 3, "item")), (), (CLICKED,), ("click",), ("home",))
    inputs = Inputs(schema, 2, encoder=ENCODERS[name])
    batch = {
        "fields": torch.tensor([[0, 5], [1, 6], [2, 7]]),
        "numbers": torch.zeros(3, 0),
        "domain": torch.zeros(3).long(),
        "clicked.fields": torch.tensor([[1, 6], [2, 7], [3, 5]]),
        "clicked.gap": torch.tensor([0, 1, 2]),
        "clicked.row": torch.tensor([0, 0, 2]),
    }
    assert inputs(batch).shape == (3, inputs.width) == (3, 8)


def test_segment_softmax_on_paper() -> None:
    """Odds 1 : 3 in row 0, one event in row 2; a common great score does not overflow."""
    scores = torch.tensor([1000.0, 1000 + math.log(3), -1000])
    weights = segment_softmax(scores, torch.tensor([0, 0, 2]), 4)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 1.0]), atol=1e-4, rtol=1e-4)
    assert segment_softmax(scores[:0], torch.zeros(0).long(), 2).shape == (0,)


def test_padding_on_paper() -> None:
    """Rows of 2, 0 and 4 events in 3 places each: the oldest of the last row has none."""
    row = torch.tensor([0, 0, 2, 2, 2, 2])
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    place = places(row, 3, 3)
    assert place.tolist() == [0, 1, 9, 6, 7, 8]
    padded = pad(values, place, 3, 3)
    assert padded[..., 0].tolist() == [[1, 2, 0], [0, 0, 0], [4, 5, 6]]
    assert unpad(padded, place).flatten().tolist() == [1, 2, 0, 4, 5, 6]


def test_sum_and_mean_pooling_on_paper() -> None:
    """The events (1, 3) and (3, 5) with gap embeddings (0, 0) and (2, 0): sum (6, 8), mean (3, 4)."""
    events, gap, row = torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.tensor([0, 1]), torch.tensor([1, 1])
    for how, expected in (("sum", [6.0, 8.0]), ("mean", [3.0, 4.0])):
        pooling = Pooling(2, Sequence("clicked", ("item_id",), 5, 2), pooling=how)
        pooling.gap.weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        assert pooling(torch.zeros(2, 2), events, gap, row).tolist() == [[0.0, 0.0], expected]


def test_dice_on_paper() -> None:
    """Running mean 1 and variance 4: x = 1 has p = ½; x = 3 has p = σ(1) = .7311."""
    dice = Dice(1).eval()
    dice.standardise.mean.fill_(1)
    dice.standardise.variance.fill_(4)
    dice.alpha.data.fill_(0.2)
    expected = [[1 * (0.5 + 0.2 * 0.5)], [3 * (0.7311 + 0.2 * 0.2689)]]
    torch.testing.assert_close(dice(torch.tensor([[1.0], [3.0]])), torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_dice_in_training_is_standardised_by_the_events_of_the_batch() -> None:
    dice, x = Dice(1).train(), torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(dice(x), x * x.sigmoid(), atol=1e-4, rtol=1e-4)


def test_temporal_interest_on_paper() -> None:
    """t̃ = 1 + 1 = 2; b̃ = 0 + 1 and log 3 − 1 + 2, so the products are 2 and 2 + 2 log 3, the odds 1 : 9."""
    encoder = TemporalInterest(1, Sequence("clicked", ("item_id",), 5, 2))
    encoder.time.weight.data = torch.tensor([[1.0], [1.0], [2.0]])
    events = torch.tensor([[0.0], [math.log(3) - 1]])
    out = encoder(torch.tensor([[1.0]]), events, torch.tensor([0, 1]), torch.tensor([0, 0]))
    torch.testing.assert_close(out, torch.tensor([[0.1 * 2 + 0.9 * (2 + 2 * math.log(3))]]))


def test_temporal_interest_against_a_loop() -> None:
    encoder, (query, events, gap, row) = make("tim"), histories([3, 0, 5])
    p, expected = array(encoder.time.weight), np.zeros((3, 4))
    for i in range(3):
        target = array(query[i]) + p[0]
        own = [array(events[j]) + p[1 + gap[j]] for j in range(len(row)) if row[j] == i]
        if own:
            weights = softmax(np.array([b @ target / 2 for b in own]))
            expected[i] = sum(w * b * target for w, b in zip(weights, own, strict=True))
    np.testing.assert_allclose(array(encoder(query, events, gap, row)), expected, rtol=1e-4, atol=1e-5)


def remember(kept: list[tuple[Tensor, Tensor, Tensor]]) -> Factory:
    """An encoder that tells what it was given."""

    class Ear(nn.Module):
        def forward(self, query: Tensor, events: Tensor, gap: Tensor, row: Tensor) -> Tensor:
            kept.append((events, gap, row))
            return query

    return lambda width, sequence: Ear()


def test_soft_search_keeps_what_a_loop_keeps_of_thousands_of_events() -> None:
    lengths = [3000, 0, 2, 1999, 40]
    query, events, gap, row = histories(lengths)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    search = SoftSearch(4, replace(CLICKED, length=3000), keep=50, then=remember(kept))
    assert torch.equal(search(query, events, gap, row), query)
    ((found, found_gap, found_row),) = kept
    assert len(found) == 5 * 50
    for i, length in enumerate(lengths):
        mine = [j for j in range(len(row)) if row[j] == i]
        scores = (events[mine] * query[i]).sum(1).tolist()
        wanted = [mine[j] for j in sorted(range(length), key=lambda j: scores[j])[-50:]]
        assert torch.equal(found[found_row == i], events[wanted])
        assert torch.equal(found_gap[found_row == i], gap[wanted])


@pytest.mark.parametrize("lengths", [[], [0, 0], [5000, 0, 2, 1999, 40, 1]])
def test_hard_search_finds_what_a_loop_finds_of_thousands_of_events(lengths: list[int]) -> None:
    """The newest 50 of the candidate's category, which is the second code; old to new."""
    random = torch.Generator().manual_seed(0)
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    events = torch.randint(4, (len(row), 2), generator=random)
    query, gap = torch.randint(4, (len(lengths), 2), generator=random), torch.arange(len(row))
    search = HardSearch(4, replace(CLICKED, length=5000), category="category")
    codes, found_gap, owner = search.find(query, events, gap, row)
    assert len(codes) == 50 * len(lengths)
    for i in range(len(lengths)):
        wanted = [j for j in range(len(row)) if row[j] == i and events[j, 1] == query[i, 1]][-50:]
        assert found_gap[owner == i].tolist() == wanted
        assert torch.equal(codes[owner == i], events[wanted])
    assert ((owner < len(lengths)).sum() == 0) == (len(row) == 0)


def test_search_of_all_events_is_the_encoder_itself() -> None:
    soft, given = SoftSearch(4, CLICKED), histories([3, 0, 5])
    torch.testing.assert_close(soft(*given), soft.encoder(*given))
    hard, (query, events, gap, row) = HardSearch(4, CLICKED, category="category"), given
    spare = functional.pad(events, (0, 0, 0, 2))
    found = hard(query, spare, functional.pad(gap, (0, 2)), functional.pad(row, (0, 2), value=3))
    torch.testing.assert_close(found, hard.encoder(*given))


def test_long_and_short_is_the_soft_search_and_the_newest() -> None:
    query, events, gap, row = histories([3, 0, 5, 1])
    both = LongAndShort(4, CLICKED, category="tag", keep=2, recent=2)
    newest = torch.tensor([j for j in range(len(row)) if (row[j:] == row[j]).sum() <= 2])
    expected = both.long(query, events, gap, row) + both.short(query, events[newest], gap[newest], row[newest])
    torch.testing.assert_close(both(query, events, gap, row), expected)
    codes = torch.zeros(len(row), 2).long()
    assert both.find(codes[:4], codes, gap, row) == (codes, gap, row)


@pytest.mark.parametrize("lengths", [[], [0, 0], [3, 0, 5, 1]])
def test_long_and_short_finds_the_newest_of_the_category_and_the_newest(lengths: list[int]) -> None:
    """At most two of the first kind and three of the second a row; each event's embedding is its own number."""
    _, values, gap, row = histories(lengths)
    query, codes = torch.zeros(len(lengths), 2).long(), torch.stack([torch.arange(len(row)), values[:, 2].long()], 1)
    both = LongAndShort(4, CLICKED, keep=2, recent=3)
    found, ages, owner = both.find(query, codes, gap, row)
    assert len(found) == len(lengths) * 5
    embedded, candidate = values[found[:, 0]] if len(row) else torch.zeros(len(found), 4), torch.ones(len(lengths), 4)
    got = both(candidate, embedded, ages, owner)
    for i in range(len(lengths)):
        own = [j for j in range(len(row)) if row[j] == i]
        of_category = torch.tensor([j for j in own if codes[j, 1] == 0][-2:]).long()
        newest = torch.tensor(own[-3:]).long()
        one = candidate[i : i + 1]
        said = [
            encoder(one, values[some], gap[some], torch.zeros(len(some)).long())[0]
            for encoder, some in ((both.long.encoder, of_category), (both.short, newest))
        ]
        torch.testing.assert_close(got[i], said[0] + said[1])


def gru_step(gru: GRU, x: np.ndarray, h: np.ndarray, attention: float = 1.0) -> np.ndarray:
    """u = σ(W_u x + b_u + U_u h), r likewise, h ← (1 − a u) h + a u tanh(W_h x + b_h + r ⊙ U_h h)."""
    of_u, of_r, of_h = np.split(array(gru.of_input.weight), 3)
    bias_u, bias_r, bias_h = np.split(array(gru.of_input.bias), 3)
    past_u, past_r, past_h = np.split(array(gru.of_state.weight), 3)
    u = attention * sigmoid(of_u @ x + bias_u + past_u @ h)
    r = sigmoid(of_r @ x + bias_r + past_r @ h)
    return (1 - u) * h + u * np.tanh(of_h @ x + bias_h + r * (past_h @ h))


def test_gru_step_on_paper() -> None:
    """All weights 0: the gates are ½, the candidate is 0. From 1, half is left, and with attention .2 nine tenths."""
    gru = GRU(1, 1)
    for parameter in gru.parameters():
        nn.init.zeros_(parameter)
    given = gru.of_input(torch.ones(1, 1))
    torch.testing.assert_close(gru.step(given, torch.ones(1, 1)), torch.tensor([[0.5]]))
    up = torch.tensor([[[0.0, 0.0, 50.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]])
    states = gru(up, torch.tensor([1.0, 0.2, 1.0, 0.0])[None, :, None])
    torch.testing.assert_close(states.flatten(), torch.tensor([0.5, 0.45, 0.225, 0.225]))


def test_gru_steps_have_the_gradient_of_single_ones() -> None:
    """Of every state, with and without attention, in double precision, as autograd derives it through `step`."""
    torch.manual_seed(0)
    gru, given = GRU(3, 5).double(), torch.randn(4, 6, 15, dtype=torch.double)
    attention = torch.rand(4, 6, 1, dtype=torch.double) * (torch.arange(24).view(4, 6, 1) % 5 > 0)

    def one_by_one(given: Tensor, attention: Tensor) -> Tensor:
        state, states = given.new_zeros(4, 5), []
        for x, a in zip(given.unbind(1), attention.unbind(1), strict=True):
            state = torch.lerp(state, gru.step(x, state), a)
            states.append(state)
        return torch.stack(states, dim=1)

    found = []
    for forward in (gru, one_by_one):
        told = given.clone().requires_grad_(), attention.clone().requires_grad_()
        states = forward(*told)
        (states * torch.arange(120.0).view(4, 6, 5).cos()).sum().backward()
        found.append((states, *(one.grad for one in told), gru.of_state.weight.grad.clone()))
        gru.of_state.weight.grad = None
    for scan, single in zip(*found, strict=True):
        torch.testing.assert_close(scan, single)


def test_interest_evolution_against_a_loop() -> None:
    encoder, lengths = make("dien"), [3, 0, 5, 1]
    query, events, gap, row = histories(lengths)
    expected, interests = np.zeros((4, 4)), []
    for i in range(4):
        h, own = np.zeros(4), []
        for j in range(len(row)):
            if row[j] == i:
                h = gru_step(encoder.extractor, array(events[j] + encoder.gap.weight[gap[j]]), h)
                own.append(h)
        interests += own
        if own:
            attention = softmax(np.array([h @ array(encoder.attend.weight) @ array(query[i]) for h in own]))
            for h, a in zip(own, attention, strict=True):
                expected[i] = gru_step(encoder.evolution, h, expected[i], a)
    np.testing.assert_allclose(array(encoder.interests(events, gap, row, 4)), interests, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(array(encoder(query, events, gap, row)), expected, rtol=1e-4, atol=1e-5)


def test_an_interest_knows_nothing_of_later_events() -> None:
    encoder, (_, events, gap, row) = make("dien"), histories([5])
    events.requires_grad_()
    encoder.interests(events, gap, row, 1)[2].sum().backward()
    assert events.grad[:3].any(dim=1).all()
    assert not events.grad[3:].any()


def test_next_event_loss_on_paper() -> None:
    """Two rows of two events. The pairs are (h_0, e_1) and (h_2, e_3), the negatives e_3 and e_1."""
    events = torch.tensor([[9.0], [2.0], [9.0], [-1.0]])
    interests, row = torch.tensor([[1.0], [7.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    first = -math.log(sigmoid(2.0)) - math.log(1 - sigmoid(-1.0))
    second = -math.log(sigmoid(-3.0)) - math.log(1 - sigmoid(6.0))
    torch.testing.assert_close(next_event_loss(interests, events, row).item(), (first + second) / 2)


@pytest.mark.parametrize("lengths", [[], [0], [1], [1, 1, 1]])
def test_next_event_loss_of_no_pairs_is_nothing(lengths: list[int]) -> None:
    _, events, _, row = histories(lengths)
    assert next_event_loss(events, events, row).item() == 0


def test_next_event_loss_does_not_count_a_negative_that_is_the_next_event() -> None:
    assert next_event_loss(torch.ones(4, 1), torch.ones(4, 1), torch.zeros(4).long()).item() == 0


def test_address_on_paper() -> None:
    """Cosines 1, 0 and −1, whatever the lengths."""
    weights = address(torch.tensor([[2.0, 0.0]]), torch.tensor([[[5.0, 0.0], [0.0, 0.1], [-3.0, 0.0]]]))
    np.testing.assert_allclose(array(weights)[0], softmax(np.array([1.0, 0.0, -1.0])), rtol=1e-5)


@pytest.mark.parametrize("name", ["mimn", "mimn_unbalanced"])
def test_interest_memory_against_a_loop(name: str) -> None:
    encoder, lengths = make(name), [3, 0, 5, 1]
    _, events, gap, row = histories(lengths)
    memory, usage = (array(part) for part in encoder.memory(events, gap, row, 4))
    weight, bias = array(encoder.heads.weight), array(encoder.heads.bias)

    def addressed(key: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return softmax(np.array([key @ slot / np.linalg.norm(key) / np.linalg.norm(slot) for slot in slots]))

    for i in range(4):
        slots, used = array(encoder.start) * (lengths[i] > 0), np.zeros(4)
        h = read = np.zeros(4)
        for j in range(len(row)):
            if row[j] == i:
                x = array(events[j] + encoder.gap.weight[gap[j]])
                h = gru_step(encoder.controller, np.concatenate([x, read]), h)
                read_key, write_key, erase, add = np.split(weight @ h + bias, 4)
                write = addressed(write_key, slots)
                if name == "mimn":
                    shares = [softmax(array(encoder.transfer[m]) * used) for m in range(4)]
                    write = np.array([sum(write[m] * shares[m][n] for m in range(4)) for n in range(4)])
                slots = np.array(
                    [(1 - write[m] * sigmoid(erase)) * slots[m] + write[m] * np.tanh(add) for m in range(4)]
                )
                used = used + write
                read = addressed(read_key, slots) @ slots
        np.testing.assert_allclose(memory[i], slots, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(usage[i], used, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(usage[i].sum(), lengths[i], rtol=1e-5)


def test_memory_is_read_as_din_reads_events() -> None:
    encoder, query = make("mimn"), torch.randn(2, 4)
    memory = torch.randn(2, 3, 4)
    unit = ActivationUnit(4, CLICKED)
    unit.weights = encoder.weights
    nn.init.zeros_(unit.gap.weight)
    as_events = unit(query, memory.flatten(0, 1), torch.zeros(6).long(), torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(encoder.read(query, memory), as_events)


def test_memory_does_not_look_at_the_candidate_so_it_can_be_kept() -> None:
    encoder, (query, events, gap, row) = make("mimn"), histories([3, 0, 5])
    kept = encoder.memory(events, gap, row, 3)[0]
    for other in (query, -query):
        torch.testing.assert_close(encoder.read(other, kept), encoder(other, events, gap, row))


def test_uneven_use_of_the_memory_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots used 3 and 1: (3 − 2)² + (1 − 2)² = 2; a row of even use halves the mean."""
    encoder = InterestMemory(4, CLICKED, slots=2)
    usage = torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    monkeypatch.setattr(encoder, "memory", lambda *given: (torch.zeros(2, 2, 4), usage))
    assert encoder.with_loss(*histories([4, 4]))[1].item() == 1.0


@pytest.mark.parametrize("name", ["dien", "mimn"])
def test_with_loss_gives_the_same_vector(name: str) -> None:
    encoder, given = make(name), histories([3, 0, 5])
    vector, loss = encoder.with_loss(*given)
    assert torch.equal(vector, encoder(*given))
    assert loss.item() > 0


WORLD = Schema(
    (Field("item_id", 12, "item"),),
    (Number("age", "user"),),
    (Sequence("clicked", ("item_id",), 8, 8),),
    ("click",),
    ("home",),
)


def changed_tastes(rows: int, seed: int) -> dict[str, Tensor]:
    """Users who liked one item long ago and like another now, among others clicked by chance. A click is likely on
    what they like now, and unlikely on all else, their old taste too."""
    random = np.random.default_rng(seed)
    old, new = random.permuted(np.tile(np.arange(12), (rows, 1)), axis=1)[:, :2].T
    chance = random.integers(12, size=(rows, 8))
    items = np.stack([old, old, old, chance[:, 0], new, new, new, chance[:, 1]], axis=1)
    gaps = np.sort(random.integers(8, size=(rows, 8)), axis=1)[:, ::-1]
    gaps = np.concatenate([4 + gaps[:, :4] // 2, gaps[:, 4:] // 2], axis=1)
    candidate = np.choose(random.integers(6, size=rows), [old, new, *chance[:, 2:6].T])
    click = random.random(rows) < np.where(candidate == new, 0.9, 0.1)
    return {
        "fields": torch.from_numpy(candidate)[:, None],
        "numbers": torch.zeros(rows, 1),
        "domain": torch.zeros(rows).long(),
        "clicked.fields": torch.from_numpy(items.reshape(-1, 1)),
        "clicked.gap": torch.from_numpy(gaps.reshape(-1).copy()),
        "clicked.row": torch.arange(rows).repeat_interleave(8),
        "labels": torch.from_numpy(click).float()[:, None],
    }


def trained(model: nn.Module, batches: list[dict[str, Tensor]], held_out: dict[str, Tensor]) -> float:
    """Log loss of the held-out rows after one step on each batch."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for batch in batches:
        optimiser.zero_grad()
        objective(model, batch, masked_bce).backward()
        optimiser.step()
    return functional.binary_cross_entropy_with_logits(model.eval()(held_out), held_out["labels"]).item()


def test_where_tastes_have_changed_attention_needs_the_time() -> None:
    """The best possible is .325. DIN as its paper has it, without the time, cannot tell the old taste from the new; the
    mean of the history does not even tell what is like the candidate."""
    batches, held_out, losses = [changed_tastes(256, seed) for seed in range(130)], changed_tastes(2000, 1000), {}
    for name in ("tim", "din", "youtube_dnn"):
        torch.manual_seed(0)
        model = RANKERS[name](WORLD, width=8, hidden=(32,))
        if name == "din":
            nn.init.zeros_(model.inputs.histories.encoders[0].gap.weight).requires_grad_(False)
        losses[name] = trained(model, batches, held_out)
    assert losses["tim"] < losses["din"] - 0.1
    assert losses["din"] < losses["youtube_dnn"] - 0.02


def test_youtube_dnn_sees_powers_of_a_number() -> None:
    """The mean is the middle of its distribution: ½, ¼ and √½."""
    model = RANKERS["youtube_dnn"](WORLD, hidden=())
    nn.init.zeros_(model.net[0].weight)
    nn.init.zeros_(model.net[0].bias)
    model.net[0].weight.data[0, -3:] = torch.tensor([1.0, 10.0, 100.0])
    logits = model.eval()(changed_tastes(2, 0))
    torch.testing.assert_close(logits, torch.full((2, 1), 0.5 + 2.5 + 100 * math.sqrt(0.5)))


@pytest.mark.parametrize(("name", "weight"), [("dien", "auxiliary"), ("mimn", "utilisation")])
def test_the_loss_is_that_of_the_labels_and_a_share_of_the_encoders_own(name: str, weight: str) -> None:
    torch.manual_seed(0)
    model, batch = RANKERS[name](WORLD, **{weight: 0.25}).eval(), changed_tastes(50, 0)
    own = model.inputs.with_loss(batch)[1]
    expected = masked_bce(model(batch), batch).sum() + 0.25 * own
    assert own > 0
    torch.testing.assert_close(model.loss(batch, masked_bce), expected)
