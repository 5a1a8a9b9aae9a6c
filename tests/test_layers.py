"""Layers, gates and sequence encoders against numbers on paper and plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.gates import GateNU, SoftmaxGate
from models.layers import (
    Bank,
    FieldEmbedding,
    FieldVectors,
    Inputs,
    Numbers,
    Standardise,
    Tables,
    as_index,
    linear,
    mix,
    mlp,
    pick,
)
from models.schema import Field, Number, Schema, Sequence
from models.sequences import ActivationUnit, Comparison, Pooling, PReLU, look_up, segment_sum, sorting, sums

SCHEMA = Schema(
    fields=(Field("user_id", 3, "user"), Field("item_id", 4, "item")),
    numbers=(Number("age", "user", mean=30.0, std=10.0), Number("constant", "item", mean=2.0, std=0.0)),
    sequences=(Sequence("clicked", ("item_id",), 5, 2),),
    labels=("click",),
    domains=("home", "search"),
)


def test_numbers_are_standardised_and_clipped() -> None:
    """(40 − 30) / 10 = 1; 1000 is 97 deviations off, so 5; a column without deviation is only centred."""
    numbers = torch.tensor([[40.0, 2.0], [1000.0, 3.0], [-1000.0, 2.0]])
    torch.testing.assert_close(Numbers(SCHEMA)(numbers), torch.tensor([[1.0, 0.0], [5.0, 1.0], [-5.0, 0.0]]))
    torch.testing.assert_close(Numbers(SCHEMA, [1])(numbers), torch.tensor([[0.0], [1.0], [0.0]]))


def test_field_embedding_looks_up_several_tensors_at_once() -> None:
    embed = FieldEmbedding(SCHEMA, 2)
    fields, events, none = embed(
        torch.tensor([[0, 3], [2, 6]]), torch.tensor([[4], [5], [4]]), torch.zeros(0, 1).long()
    )
    assert torch.equal(fields[1, 1], embed.table.weight[6])
    assert torch.equal(events[2, 0], embed.table.weight[4])
    assert none.shape == (0, 1, 2)


def test_inputs_put_fields_histories_and_numbers_side_by_side() -> None:
    inputs = Inputs(SCHEMA, 1).eval()
    inputs.embed.table.weight.data = torch.arange(7.0)[:, None]
    nn.init.zeros_(inputs.histories.encoders[0].gap.weight)
    batch = {
        "fields": torch.tensor([[1, 3], [2, 4]]),
        "numbers": torch.tensor([[40.0, 2.0], [30.0, 2.0]]),
        "domain": torch.tensor([0, 1]),
        "clicked.fields": torch.tensor([[3], [6]]),
        "clicked.gap": torch.tensor([0, 1]),
        "clicked.row": torch.tensor([0, 0]),
    }
    side_by_side = torch.tensor([[1.0, 3.0, 4.5, 1.0, 0.0], [2.0, 4.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(inputs(batch), side_by_side, atol=1e-4, rtol=1e-4)
    assert inputs.width == 5
    in_training = inputs.train()(batch)
    torch.testing.assert_close(in_training[:, 0], torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=1e-4)


def test_field_vectors_are_the_embedded_part_of_the_input_and_a_map_of_the_numbers_of_each_role() -> None:
    vectors = FieldVectors(SCHEMA, 2)
    vectors.maps[0].weight.data, vectors.maps[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 100.0]])
    expected = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [10.0, 20.0], [300.0, 0.0]]])
    assert torch.equal(vectors(x), expected)
    assert (len(vectors), vectors.roles) == (5, ("user", "item", "user", "user", "item"))


def test_mlp_has_relu_between_its_layers_only() -> None:
    assert [type(layer) for layer in mlp(4, 3, 2, 1)] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("activate_last", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4), (0, 4), (0, 3, 4)])
def test_bank_against_a_loop(activate_last: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    bank, x = Bank(3, 4, 5, 2, activate_last=activate_last), torch.randn(shape)
    first, last = bank.layers
    assert bank(x).shape == (shape[0], 3, 2)
    for k in range(3):
        own = x if x.ndim == 2 else x[:, k]
        out = (own @ first.weight[k] + first.bias[k]).relu() @ last.weight[k] + last.bias[k]
        torch.testing.assert_close(bank(x)[:, k], out.relu() if activate_last else out)


def test_mix_on_paper() -> None:
    experts = torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])
    gates = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.0, 2.0]]])
    torch.testing.assert_close(mix(gates, experts), torch.tensor([[[5.5, 11.0], [1.0, 2.0], [20.0, 40.0]]]))


def test_pick_takes_the_rows_own_domain() -> None:
    per_domain = torch.arange(24.0).view(3, 4, 2)
    domain = torch.tensor([3, 0, 1])
    assert torch.equal(pick(per_domain, domain), torch.stack([per_domain[i, p] for i, p in enumerate(domain)]))
    assert torch.equal(pick(per_domain[..., 0], domain), torch.tensor([6.0, 8.0, 18.0]))


@pytest.mark.parametrize("alike", [False, True])
def test_a_layer_reads_parts_as_if_they_were_joined(alike: bool) -> None:
    layer, parts = nn.Linear(6, 4), [torch.randn(5, 2), torch.randn(1 if alike else 5, 1), torch.randn(5, 3)]
    joined = torch.cat([part.expand(5, -1) for part in parts], dim=1)
    torch.testing.assert_close(linear(layer, *parts), layer(joined))


def test_columns_side_by_side_are_a_slice() -> None:
    assert [as_index(columns) for columns in ([], [3], [1, 2], [1, 3])] == [
        slice(0, 0),
        slice(3, 4),
        slice(1, 3),
        [1, 3],
    ]


def test_gatenu_with_zero_weights_lets_everything_pass() -> None:
    gate = GateNU(3, 2, hidden=4)
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(gate(torch.randn(5, 3)), torch.ones(5, 2))


def test_gatenu_is_bounded_by_two() -> None:
    gate = GateNU(3, 2, hidden=4)
    nn.init.constant_(gate.net[-1].bias, 100.0)
    torch.testing.assert_close(gate(torch.randn(5, 3)), torch.full((5, 2), 2.0))
    nn.init.constant_(gate.net[-1].bias, -100.0)
    torch.testing.assert_close(gate(torch.randn(5, 3)), torch.zeros(5, 2))


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_softmax_gate_sums_to_one_even_if_all_is_dropped(dropout: float) -> None:
    torch.manual_seed(0)
    gate, x = SoftmaxGate(3, gates=2, experts=4, dropout=dropout), torch.randn(200, 3)
    dropped = gate(x)
    torch.testing.assert_close(dropped.sum(dim=-1), torch.ones(200, 2))
    assert bool((dropped == 0).any()) == (dropout == 0.5)
    torch.testing.assert_close(gate.eval()(x), gate.score(x).view(200, 2, 4).softmax(-1))


def test_softmax_gate_gives_each_gate_its_own_input() -> None:
    torch.manual_seed(0)
    gate, x = SoftmaxGate(3, gates=2, experts=4, dropout=0.0), torch.randn(5, 2, 3)
    for g in range(2):
        alone = (x[:, g] @ gate.score.weight[g] + gate.score.bias[g]).softmax(-1)
        torch.testing.assert_close(gate(x)[:, g], alone)


def test_softmax_gate_has_gradients_when_all_but_a_weight_of_zero_is_dropped() -> None:
    """e^−200 is 0 in float32; where the other expert is dropped, that expert is all there is."""
    torch.manual_seed(0)
    gate = SoftmaxGate(1, gates=1, experts=2, dropout=0.5)
    gate.score.bias.data = torch.tensor([[0.0, -200.0]])
    weights = gate(torch.zeros(50, 1))
    assert {tuple(row) for row in weights[:, 0].tolist()} == {(1.0, 0.0), (0.0, 1.0)}
    weights[:, 0, 1].sum().backward()
    assert gate.score.bias.grad.isfinite().all()


def test_tables_each_have_their_part_of_every_embedding_and_the_numbers() -> None:
    """Two fields and a history, of which a table of width 1 and one of width 2 have 1 and 2 numbers."""
    tables = Tables(SCHEMA, (1, 2))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0]])
    narrow, wide = tables(x)
    assert torch.equal(narrow, torch.tensor([[1.0, 4.0, 7.0, 10.0, 100.0]]))
    assert torch.equal(wide, torch.tensor([[2.0, 3.0, 5.0, 6.0, 8.0, 9.0, 10.0, 100.0]]))
    assert tables.sizes == [5, 8]


def test_segment_sum_gives_zeros_to_a_row_without_events() -> None:
    total = segment_sum(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 2, 2]), 4)
    assert torch.equal(total, torch.tensor([[1.0], [0.0], [6.0], [0.0]]))


def test_mean_pooling_on_paper() -> None:
    """The events (1, 3) and (3, 5) with gap embeddings (0, 0) and (2, 0): mean (3, 4)."""
    pooling = Pooling(2, Sequence("clicked", ("item_id",), 5, 2))
    pooling.gap.weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    events = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    pooled = pooling(torch.zeros(2, 2), events, torch.tensor([0, 1]), torch.tensor([1, 1]))
    torch.testing.assert_close(pooled, torch.tensor([[0.0, 0.0], [3.0, 4.0]]))


def test_activation_unit_on_paper() -> None:
    """Hidden units that read q, k, q − k and q ⊙ k alone, weighed 1, 10, 100 and 1000.

    q = 3: k = 2 weighs 3 + 20 + 100 + 6000 = 6123 and k = 1 weighs 3 + 10 + 200 + 3000 = 3213.
    """
    unit = ActivationUnit(1, Sequence("clicked", ("item_id",), 5, 1), hidden=4)
    unit.gap.weight.data.zero_()
    unit.weights.compare.weight.data, unit.weights.compare.bias.data = torch.eye(4), torch.zeros(4)
    unit.weights.weigh.weight.data, unit.weights.weigh.bias.data = (
        torch.tensor([[1.0, 10.0, 100.0, 1000.0]]),
        torch.zeros(1),
    )
    query, events, row = torch.tensor([[3.0], [7.0]]), torch.tensor([[2.0], [1.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(unit.weights(query, events, row), torch.tensor([[6123.0], [3213.0]]))
    out = unit(query, events, torch.zeros(2).long(), row)
    torch.testing.assert_close(out, torch.tensor([[6123.0 * 2 + 3213.0], [0.0]]))


def test_activation_unit_is_the_network_on_the_concatenation() -> None:
    torch.manual_seed(0)
    unit = ActivationUnit(3, Sequence("clicked", ("item_id",), 5, 1))
    query, events, row = torch.randn(4, 3), torch.randn(9, 3), torch.randint(4, (9,))
    q = query[row]
    whole = unit.weights.compare(torch.cat([q, events, q - events, q * events], dim=1))
    weights = unit.weights.weigh(unit.weights.activation(whole))
    torch.testing.assert_close(unit.weights(query, events, row), weights)


@pytest.mark.parametrize("rows", [0, 1, 2, 50])
@pytest.mark.parametrize("training", [True, False])
def test_one_group_is_standardised_as_one_of_several_groups_is(rows: int, training: bool) -> None:
    """The same rows in group 1 of 3, in value, gradient and running statistics."""
    torch.manual_seed(0)
    one, three = Standardise(1, 4).train(training), Standardise(3, 4).train(training)
    for standardise in (one, three):
        standardise.mean += 0.3
        standardise.variance *= 2
    z = torch.randn(rows, 4)
    ends = []
    for standardise, group in ((one, 0), (three, 1)):
        leaf = z.clone().requires_grad_()
        out = standardise(leaf, torch.full((rows,), group))
        (out * torch.arange(float(rows * 4)).view(rows, 4)).sum().backward()
        ends.append((out.detach(), leaf.grad, standardise.mean[group], standardise.variance[group]))
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-4)


@given(st.lists(st.integers(0, 99_999), max_size=50), st.sampled_from([1 << 8, 1 << 16, 100_000]))
def test_sorting_is_stable(numbers: list[int], size: int) -> None:
    small = [number % size for number in numbers]
    expected = sorted(range(len(small)), key=small.__getitem__)
    assert sorting(torch.tensor(small, dtype=torch.long), size).tolist() == expected


@pytest.mark.parametrize("size", [5, 300, 70_000])
@pytest.mark.parametrize("count", [0, 1, 400])
def test_sums_and_the_gradient_of_a_small_table(size: int, count: int) -> None:
    """Against index_add and against an embedding; some rows are asked for by nobody."""
    torch.manual_seed(0)
    values, index = torch.randn(count, 3), torch.randint(size - 1, (count,))
    torch.testing.assert_close(sums(values, index, size), torch.zeros(size, 3).index_add(0, index, values))
    table = torch.randn(size, 3, requires_grad=True)
    wanted = torch.autograd.grad((nn.functional.embedding(index, table) * values).sum(), table)
    found = look_up(table, index)
    assert torch.equal(found, table[index])
    torch.testing.assert_close(torch.autograd.grad((found * values).sum(), table), wanted)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_prelu_against_torch_s(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    own, torch_s, x, weight = PReLU(), nn.PReLU().to(kind), torch.randn(20, 3).to(kind), torch.randn(20, 3).to(kind)
    x[0] = 0
    given_x = [x.clone().requires_grad_() for _ in range(2)]
    for module, leaf in zip((own, torch_s), given_x, strict=True):
        (module(leaf) * weight).sum().backward()
    assert torch.equal(own(x), torch_s(x))
    torch.testing.assert_close(given_x[0].grad, given_x[1].grad)
    torch.testing.assert_close(own.weight.grad, torch_s.weight.grad.float(), atol=1e-5, rtol=1e-2)


def test_comparison_is_the_network_of_the_paper() -> None:
    torch.manual_seed(0)
    compare, query, events = Comparison(4, 5), torch.randn(3, 4), torch.randn(6, 4)
    row = torch.tensor([0, 0, 1, 2, 2, 2])
    q = query[row]
    hidden = compare.activation(compare.compare(torch.cat([q, events, q - events, q * events], dim=1)))
    torch.testing.assert_close(compare(query, events, row), compare.weigh(hidden))
