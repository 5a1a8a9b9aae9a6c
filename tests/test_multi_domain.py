"""Rankers with a part for each domain or for each table: against numbers on paper, plain loops, exact zeros where a
gradient must not go, and a world in which two domains have opposite tastes."""

from __future__ import annotations

import math

import pytest
import torch
from test_rankers import SCHEMA, build, examples, lively, pack
from torch import Tensor, nn
from torch.nn import functional

from models import RANKERS, Schema
from models.domains import DomainCross, own_gradient
from models.gates import EmbeddingGate, GatedTowers
from models.layers import Inputs, field_columns
from models.objective import objective
from models.rankers.saml import MutualUnit
from models.schema import Field, Sequence
from pipeline.ranking.losses import masked_bce

DOMAINS = len(SCHEMA.domains)


def of_domain(domain: int, count: int = 60) -> dict[str, Tensor]:
    """Labelled rows of one domain."""
    rows = [{**row, "domain": domain} for row in examples(count)]
    return {**pack(rows), "labels": torch.randint(2, (count, 2)).float()}


def learners(parameter: Tensor) -> list[int]:
    """The slices that got a gradient."""
    return parameter.grad.flatten(1).any(dim=1).nonzero().flatten().tolist()


def forward_bank(bank: nn.Module, k: int, x: Tensor) -> Tensor:
    """Network k of a bank, a layer at a time."""
    for i, layer in enumerate(bank.layers):
        x = x @ layer.weight[k] + layer.bias[k]
        x = x.relu() if i < bank.activated else x
    return x


# Crossing with the domain, and gradients that stay in it


def test_domain_cross_on_paper() -> None:
    """Two domains; user has 3 codes, domain 2, item 4. Crossed, user has rows 0 to 5 and item rows 6 to 13."""
    schema = Schema(
        (Field("user", 3, "user"), Field("domain", 2, "context"), Field("item", 4, "item")),
        (),
        (Sequence("clicked", ("item",), 5, 10),),
        ("click",),
        ("home", "search"),
    )
    cross = DomainCross(schema)
    batch = {
        "fields": torch.tensor([[2, 3, 5 + 3], [1, 4, 5 + 0]]),
        "domain": torch.tensor([0, 1]),
        "clicked.fields": torch.tensor([[5], [6], [7]]),
        "clicked.gap": torch.tensor([9, 8, 7]),
        "clicked.row": torch.tensor([0, 1, 1]),
    }
    crossed = cross(batch)
    assert [(field.name, field.size) for field in cross.schema.fields] == [("user", 6), ("item", 8)]
    assert crossed["fields"].tolist() == [[2, 6 + 3], [3 + 1, 6 + 4 + 0]]
    assert crossed["clicked.fields"].tolist() == [[6 + 0], [6 + 4 + 1], [6 + 4 + 2]]
    assert crossed["clicked.gap"].tolist() == [9, 10 + 8, 10 + 7]
    assert torch.equal(crossed["domain"], batch["domain"])


def test_domain_cross_keeps_the_domain_where_a_history_has_it() -> None:
    schema = Schema(SCHEMA.fields, (), (Sequence("clicked", ("domain",), 5, 2),), ("click",), ("home", "search"))
    assert DomainCross(schema).schema.fields[-1] == Field("domain", 8, "context")


@pytest.mark.parametrize("name", ["per_domain", "saml"])
def test_a_row_s_own_domain_is_no_input_within_the_domain(name: str) -> None:
    """Where histories have the field `domain`, its vectors reach the networks through events alone."""
    schema = Schema(SCHEMA.fields, (), (Sequence("clicked", ("domain",), 5, 2),), ("click",), ("home", "search"))
    torch.manual_seed(0)
    model = lively(RANKERS[name](schema, width=4))
    table = (model.inputs.embed if name == "per_domain" else model.own).table.weight
    domain = model.cross.schema.position("domain")
    first = model.cross.schema.offsets[domain]
    fields = (torch.tensor(schema.offsets) + 1).repeat(2, 1)
    batch = {
        "fields": fields,
        "numbers": torch.zeros(2, 0),
        "domain": torch.tensor([0, 1]),
        "clicked.fields": torch.zeros(0, 1, dtype=torch.long),
        "clicked.gap": torch.zeros(0, dtype=torch.long),
        "clicked.row": torch.zeros(0, dtype=torch.long),
    }
    event = {
        "clicked.fields": fields[:1, schema.position("domain")][None],
        "clicked.gap": torch.zeros(1, dtype=torch.long),
        "clicked.row": torch.zeros(1, dtype=torch.long),
    }
    before, with_event = model(batch), model(batch | event)
    table.data[first : first + model.cross.schema.fields[domain].size] += 1
    assert torch.equal(model(batch), before)
    assert not torch.equal(model(batch | event)[0], with_event[0])


def test_own_gradient_on_paper() -> None:
    values = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    out = own_gradient(values, torch.tensor([2, 0]))
    assert torch.equal(out, values)
    out.sum().backward()
    assert values.grad.tolist() == [[[0, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [0, 0]]]


def test_inputs_by_domain_are_standardised_within_each() -> None:
    inputs = lively(Inputs(SCHEMA, 4, by_domain=True)).train()
    batch = pack(examples(90))
    out, twin = inputs(batch), Inputs(SCHEMA, 4)
    twin.load_state_dict(
        {**inputs.state_dict(), **{f"standardise.{k}": v for k, v in twin.standardise.named_buffers()}}
    )
    for domain in range(DOMAINS):
        mine = [row for row in examples(90) if row["domain"] == domain]
        torch.testing.assert_close(out[batch["domain"] == domain], twin.train()(pack(mine)), atol=1e-4, rtol=1e-4)


def test_field_columns_on_paper() -> None:
    assert field_columns(SCHEMA, 2, "item_id", "domain", "nowhere") == [4, 5, 8, 9]


# EPNet, PPNet


def test_embedding_gate_row_by_row_and_what_it_trains() -> None:
    torch.manual_seed(0)
    gate, x, domain = EmbeddingGate(3, 2, into=4, hidden=5), torch.randn(6, 4, requires_grad=True), torch.arange(6) % 3
    out = gate(x, domain)
    factors = []
    for row, p in zip(x, domain.tolist(), strict=True):
        hidden = (gate.gate.net[0].weight @ torch.cat([gate.domain.weight[p], row]) + gate.gate.net[0].bias).relu()
        factors.append(2 / (1 + (-(gate.gate.net[2].weight @ hidden + gate.gate.net[2].bias)).exp()))
    factor = torch.stack(factors)
    torch.testing.assert_close(out, x * factor)
    out.sum().backward()
    torch.testing.assert_close(x.grad, factor)


def test_gated_towers_row_by_row() -> None:
    """Two tasks with layers 3 and 2: the gates' ten outputs are task 0's three and two, then task 1's."""
    torch.manual_seed(0)
    towers, x, told = GatedTowers(2, 4, 3, (3, 2), gate=5), torch.randn(6, 4), torch.randn(6, 3, requires_grad=True)
    gates = towers.gate(told)
    logits = towers(x, told)
    torch.testing.assert_close(towers(x[:, None].expand(-1, 2, -1), told), logits)
    for b in range(6):
        for task in range(2):
            own, h = gates[b, 5 * task : 5 * task + 5], x[b]
            h = (h @ towers.layers[0].weight[task] + towers.layers[0].bias[task]).relu() * own[:3]
            h = (h @ towers.layers[1].weight[task] + towers.layers[1].bias[task]).relu() * own[3:]
            logit = h @ towers.layers[2].weight[task] + towers.layers[2].bias[task]
            torch.testing.assert_close(logits[b, task], logit[0])
    logits.sum().backward()
    assert told.grad.any()


def test_epnet_with_a_gate_of_one_is_flat_dnn() -> None:
    model, batch = lively(build("epnet")), pack(examples(20))
    for parameter in model.embedding_gate.gate.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(model(batch), model.net(model.inputs(batch)))


def test_epnet_gate_does_not_train_the_embeddings_it_looks_at() -> None:
    """The table's gradient is what it would be if the gate were a constant."""
    model, batch = lively(build("epnet")), pack(examples(20))
    x = model.inputs(batch)
    gate = model.embedding_gate.gate(torch.cat([model.embedding_gate.domain(batch["domain"]), x], dim=1)).detach()
    (expected,) = torch.autograd.grad(model.net(x * gate).sum(), model.inputs.embed.table.weight)
    (got,) = torch.autograd.grad(model(batch).sum(), model.inputs.embed.table.weight)
    torch.testing.assert_close(got, expected)


def test_ppnet_gates_train_only_the_ids_they_are_told() -> None:
    model, batch = lively(build("ppnet")), pack(examples(20))
    model.towers.layers[0].weight.data.zero_()
    model(batch).sum().backward()
    gradient, told = model.inputs.embed.table.weight.grad, batch["fields"][:, [0, 2, 3]].unique()
    assert gradient[told].any(dim=1).all()
    gradient[told] = 0
    assert not gradient.any()


# HMoE


def test_hmoe_row_by_row() -> None:
    model, batch = lively(build("hmoe")), pack(examples(12))
    x = model.inputs(batch)
    for b, p in enumerate(batch["domain"].tolist()):
        experts = torch.stack([forward_bank(model.experts, k, x[b]) for k in range(4)])
        weights, logit = model.relations[p].exp() / model.relations[p].exp().sum(), torch.zeros(2)
        for q in range(DOMAINS):
            gate = (x[b] @ model.gates.score.weight[q] + model.gates.score.bias[q]).softmax(0)
            logit += weights[q] * forward_bank(model.towers, q, (gate[:, None] * experts).sum(0))
        torch.testing.assert_close(model(batch)[b], logit, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("domain", range(DOMAINS))
def test_hmoe_rows_train_their_own_domains_gates_and_tower_alone(domain: int) -> None:
    model, batch = lively(build("hmoe")).train(), of_domain(domain)
    objective(model, batch, masked_bce).backward()
    assert learners(model.relations) == [domain]
    assert learners(model.gates.score.weight) == [domain]
    for layer in model.towers.layers:
        assert learners(layer.weight) == learners(layer.bias) == [domain]


def test_hmoe_other_domains_score_a_row_nonetheless() -> None:
    model, batch = lively(build("hmoe")), of_domain(0)
    before = model(batch)
    model.towers.layers[-1].bias.data[1] += 1
    torch.testing.assert_close(model(batch) - before, model.relations[0].softmax(0)[1].expand(60, 2))


# SAML


def test_mutual_unit_row_by_row() -> None:
    torch.manual_seed(0)
    unit, branches, domain = MutualUnit(4), torch.randn(6, 3, 4), torch.arange(6) % 3
    out = unit(branches, domain)
    for b, p in enumerate(domain.tolist()):
        units = [branch / branch.norm() for branch in branches[b]]
        similar = torch.stack([(unit.map.weight @ units[p]) @ other for other in units])
        weights = similar.exp() / similar.exp().sum()
        mixed = sum(weight * other for weight, other in zip(weights, units, strict=True))
        torch.testing.assert_close(out[b], torch.cat([branches[b, p], mixed]))


def test_saml_row_by_row() -> None:
    """All branches from the two spaces on, and the auxiliary network beside them."""
    model, batch = lively(build("saml", hidden=(6, 5))), pack(examples(12))
    logits, auxiliary = model.both(batch)
    for b, p in enumerate(batch["domain"].tolist()):
        shared, own = model.inputs(batch)[b], [model.own_space(batch)[b]] * DOMAINS
        for i in range(2):
            branch, bridge = model.branches[i], model.bridges[i]
            own = [
                (own[q] @ branch.weight[q] + branch.bias[q] + shared @ bridge.weight[q] + bridge.bias[q]).relu()
                for q in range(DOMAINS)
            ]
            shared = model.shared[i](shared).relu()
        joined = model.mutual(torch.stack(own)[None], torch.tensor([p]))[0]
        torch.testing.assert_close(logits[b], forward_bank(model.heads, p, joined), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(auxiliary[b], model.shared_head(shared), atol=1e-5, rtol=1e-5)
    assert torch.equal(model(batch), logits)


def test_saml_reads_both_spaces_with_the_same_attention() -> None:
    """Where every domain's vectors, lifted, are the global ones, so is what a history comes to."""
    model, batch = lively(build("saml", own_width=16)), pack(examples(30))
    model.lift.weight.data = torch.eye(16)
    embed = model.inputs.embed.table.weight.data
    for i, column in enumerate(model.cross.columns):
        begin, size = SCHEMA.offsets[column], SCHEMA.fields[column].size
        into = model.cross.schema.offsets[i]
        model.own.table.weight.data[into : into + DOMAINS * size] = embed[begin : begin + size].repeat(DOMAINS, 1)
    for standardise in (model.inputs.standardise, model.standardise):
        standardise.mean.zero_()
        standardise.variance.fill_(1)
    shared, own = model.inputs(batch), model.own_space(batch)
    torch.testing.assert_close(own[:, : 4 * 16], shared[:, : 4 * 16])
    torch.testing.assert_close(own[:, 4 * 16 :], shared[:, 5 * 16 : -2])
    assert own[:, 4 * 16 :].any()


@pytest.mark.parametrize("domain", range(DOMAINS))
def test_saml_rows_train_their_own_domains_branch_and_table_alone(domain: int) -> None:
    model, batch = lively(build("saml")).train(), of_domain(domain)
    objective(model, batch, masked_bce).backward()
    for bank in (*model.branches, *model.bridges, *model.heads.layers):
        assert learners(bank.weight) == learners(bank.bias) == [domain]
    crossed = model.cross(batch)
    read = torch.cat([crossed[name].flatten() for name in ("fields", "clicked.fields", "liked.fields")])
    assert learners(model.own.table.weight) == read.unique().tolist()


def test_saml_auxiliary_network_has_a_loss_of_its_own() -> None:
    model, batch = lively(build("saml", auxiliary=0.5)), of_domain(1)
    own, shared = model.both(batch)
    expected = masked_bce(own, batch).sum() + 0.5 * masked_bce(shared, batch).sum()
    torch.testing.assert_close(objective(model, batch, masked_bce), expected)
    masked_bce(shared, batch).sum().backward()
    assert model.shared[0].weight.grad.any()
    for parameters in (model.branches, model.bridges, model.heads, model.own, model.mutual):
        assert all(parameter.grad is None for parameter in parameters.parameters())


# One network for each domain


@pytest.mark.parametrize("domain", range(DOMAINS))
def test_per_domain_rows_train_nothing_of_another_domain(domain: int) -> None:
    """In a batch with all domains: neither weights nor, through batch statistics, tables."""
    model, batch = lively(build("per_domain")).train(), {**pack(examples(90)), "labels": torch.ones(90, 2)}
    batch["labels"][batch["domain"] != domain] = torch.nan
    objective(model, batch, masked_bce).backward()
    for layer in model.nets.layers:
        assert learners(layer.weight) == learners(layer.bias) == [domain]
    for encoder in model.inputs.histories.encoders:
        assert {code // 6 for code in learners(encoder.gap.weight)} == {domain}
    schema, learnt = model.cross.schema, learners(model.inputs.embed.table.weight)
    assert learnt
    for field, offset in zip(schema.fields, schema.offsets, strict=True):
        codes = [code - offset for code in learnt if offset <= code < offset + field.size]
        assert {code // (field.size // DOMAINS) for code in codes} == {domain}


def test_per_domain_scores_as_it_would_have_trained_alone() -> None:
    """Twenty steps beside the other domains leave a domain's scores as twenty steps without them."""
    rows = examples(60)
    labels = torch.randint(2, (60, 2), generator=torch.Generator().manual_seed(0)).float()
    mine = [i for i, row in enumerate(rows) if row["domain"] == 1]
    scores = []
    for chosen in (range(60), mine):
        model, batch = build("per_domain"), pack([rows[i] for i in chosen])
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            optimiser.zero_grad()
            losses = functional.binary_cross_entropy_with_logits(model(batch), labels[list(chosen)], reduction="none")
            losses.sum().div(60).backward()
            optimiser.step()
        scores.append(model.eval()(pack([rows[i] for i in mine])))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


# Multi-embedding, heterogeneous experts


def products_and_vectors(vectors: Tensor) -> Tensor:
    """⟨v_i, v_j⟩ for all i < j, then the vectors, (B, N, D) → (B, N(N−1)/2 + N·D)."""
    count = vectors.shape[1]
    products = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(count) for j in range(i + 1, count)]
    return torch.cat([torch.stack(products, dim=1), vectors.flatten(1)], dim=1)


def test_multi_embedding_table_by_table() -> None:
    model, batch = lively(build("multi_embedding", tables=3, width=4)), pack(examples(12))
    x = model.inputs(batch)
    tables = [torch.cat([products_and_vectors(one), x[:, -2:]], dim=1) for one in model.vectors(x).split(4, dim=2)]
    experts = [forward_bank(model.experts, k, table) for k, table in enumerate(tables)]
    for task in range(2):
        gate = (x @ model.gates.score.weight[task] + model.gates.score.bias[task]).softmax(1)
        mixed = sum(gate[:, [k]] * experts[k] for k in range(3))
        torch.testing.assert_close(model(batch)[:, [task]], forward_bank(model.towers, task, mixed))


def test_heterogeneous_experts_read_their_own_table() -> None:
    """GwPFM and FlatDNN the first, of a vector for each of four groups; IPNN the second."""
    model, batch = lively(build("heterogeneous_experts", width=4)), pack(examples(12))
    x = model.inputs(batch)
    first, second = model.vectors(x).split([16, 4], dim=2)
    flat_dnn, ipnn = (torch.cat([part, x[:, -2:]], dim=1) for part in (first.flatten(1), products_and_vectors(second)))
    seen = model.group_pairs(first), flat_dnn, ipnn
    experts = [expert(part) for expert, part in zip(model.experts, seen, strict=True)]
    for task in range(2):
        gate = (x @ model.gates.score.weight[task] + model.gates.score.bias[task]).softmax(1)
        mixed = sum(gate[:, [k]] * experts[k] for k in range(3))
        torch.testing.assert_close(model(batch)[:, [task]], forward_bank(model.towers, task, mixed))


# A world with opposite tastes

WORLD = Schema(
    (Field("user_id", 6, "user"), Field("item_id", 10, "item"), Field("domain", 2, "context")),
    (),
    (),
    ("click",),
    ("home", "search"),
)


def opposite_tastes(rows: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Rows, and the true probabilities of a click: what is liked in one domain is disliked in the other."""
    random = torch.Generator().manual_seed(seed)
    user, item, domain = (torch.randint(n, (rows,), generator=random) for n in (6, 10, 2))
    taste = torch.where(item % 2 == 0, 2.0, -2.0) + 0.3 * (user - 2.5)
    truth = torch.sigmoid(torch.where(domain == 0, taste, -taste))[:, None]
    fields = torch.stack([user, 6 + item, 16 + domain], dim=1)
    batch = {"fields": fields, "numbers": torch.zeros(rows, 0), "domain": domain}
    return {**batch, "labels": torch.bernoulli(truth, generator=random)}, truth


def log_loss(probability: Tensor, truth: Tensor) -> float:
    """The expected log loss: with the truth in the place of labels there is no noise, and the truth itself is least."""
    return functional.binary_cross_entropy(probability, truth).item()


def trained(name: str, schema: Schema) -> float:
    """Log loss on fresh rows."""
    torch.manual_seed(0)
    model = RANKERS[name](schema, width=4, **({} if name in ("hmoe", "mmoe") else {"hidden": (16, 8)}))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02)
    width = len(schema.fields)
    for step in range(60):
        batch, _ = opposite_tastes(512, seed=step)
        optimiser.zero_grad()
        objective(model, {**batch, "fields": batch["fields"][:, :width]}, masked_bce).backward()
        optimiser.step()
    batch, truth = opposite_tastes(4_000, seed=1_000)
    with torch.no_grad():
        logits = model.eval()({**batch, "fields": batch["fields"][:, :width]})
    return log_loss(logits.sigmoid(), truth)


@pytest.fixture(scope="module")
def blind() -> float:
    return trained("flat_dnn", Schema(WORLD.fields[:2], (), (), WORLD.labels, WORLD.domains))


@pytest.mark.parametrize("name", ["star", "epnet", "ppnet", "pepnet", "hmoe", "saml", "per_domain"])
def test_where_domains_have_opposite_tastes_the_blind_model_is_beaten_and_the_oracle_is_not(
    name: str, blind: float
) -> None:
    _, truth = opposite_tastes(4_000, seed=1_000)
    oracle, mine = log_loss(truth, truth), trained(name, WORLD)
    assert oracle < 0.4 < 0.6 < blind < math.log(2) + 0.02
    assert oracle - 1e-4 < mine < oracle + 0.25 * (blind - oracle), (oracle, mine, blind)
