"""The contract that every ranker passes, without exception, and what each must give by its paper."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import RANKERS, Schema
from models.domains import PartitionedNorm
from models.layers import mlp
from models.objective import objective
from models.schema import Field, Number, Sequence
from pipeline.ranking.losses import masked_bce

SCHEMA = Schema(
    fields=(
        Field("user_id", 71, "user"),
        Field("age", 4, "user"),
        Field("item_id", 13, "item"),
        Field("author_id", 5, "item"),
        Field("domain", 4, "context"),
    ),
    numbers=(Number("popularity", "item", 2.0, 4.0), Number("affinity", "cross", -1.0, 0.5)),
    sequences=(
        Sequence("clicked", ("item_id", "author_id"), 5, 6),
        Sequence("liked", ("item_id",), 3, 6),
    ),
    labels=("click", "like"),
    domains=("home", "search", "video"),
)
NAMES = [sequence.name for sequence in SCHEMA.sequences]
every_ranker = pytest.mark.parametrize("name", RANKERS)


def example(user: int, random: np.random.Generator, schema: Schema = SCHEMA) -> dict[str, np.ndarray]:
    """One row: a user with random everything else, some histories empty."""
    codes = [user, *(random.integers(field.size) for field in schema.fields[1:])]
    row = {
        "fields": np.array(codes) + schema.offsets,
        "numbers": random.normal(size=len(schema.numbers)).astype(np.float32),
        "domain": random.integers(len(schema.domains)),
    }
    for sequence in schema.sequences:
        length = random.integers(sequence.length + 1)
        columns = [schema.position(field) for field in sequence.fields]
        events = [
            random.integers(schema.fields[column].size, size=length) + schema.offsets[column] for column in columns
        ]
        row[f"{sequence.name}.fields"] = np.stack(events, axis=1)
        row[f"{sequence.name}.gap"] = random.integers(sequence.gaps, size=length)
    return row


def examples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [example(i % 71, random) for i in range(count)]


def pack(rows: list[dict[str, np.ndarray]], schema: Schema = SCHEMA) -> dict[str, Tensor]:
    """Rows as a batch."""
    batch = {
        "fields": torch.from_numpy(np.array([row["fields"] for row in rows]).reshape(-1, len(schema.fields))).long(),
        "numbers": torch.from_numpy(
            np.array([row["numbers"] for row in rows]).reshape(-1, len(schema.numbers))
        ).float(),
        "domain": torch.tensor([int(row["domain"]) for row in rows], dtype=torch.long),
    }
    for sequence in schema.sequences:
        width = len(sequence.fields)
        events = [row[f"{sequence.name}.fields"] for row in rows]
        gaps = [row[f"{sequence.name}.gap"] for row in rows]
        batch[f"{sequence.name}.fields"] = torch.from_numpy(np.concatenate([np.zeros((0, width), int), *events])).long()
        batch[f"{sequence.name}.gap"] = torch.from_numpy(np.concatenate([np.zeros(0, int), *gaps])).long()
        batch[f"{sequence.name}.row"] = torch.arange(len(rows)).repeat_interleave(
            torch.tensor([len(gap) for gap in gaps], dtype=torch.long)
        )
    return batch


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with parameters and running statistics as if it had been trained, so that everything has an effect."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    for key, buffer in model.named_buffers():
        if "standardise" in key:
            buffer += torch.rand(buffer.shape, generator=random)
    return model.eval()


def build(name: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return RANKERS[name](SCHEMA, **options)


@every_ranker
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("training", [True, False])
def test_one_logit_for_each_row_and_label(name: str, rows: int, training: bool) -> None:
    logits = build(name).train(training)(pack(examples(rows)))
    assert logits.shape == (rows, 2)
    assert logits.isfinite().all()


@every_ranker
def test_works_without_sequences_numbers_or_several_domains(name: str) -> None:
    schema = Schema(SCHEMA.fields[:4], (), (), ("click",), ("home",))
    batch = {
        "fields": pack(examples(5))["fields"][:, :4],
        "numbers": torch.zeros(5, 0),
        "domain": torch.zeros(5).long(),
    }
    assert RANKERS[name](schema)(batch).shape == (5, 1)


@every_ranker
def test_reads_a_cross_of_two_sides_as_one_more_field(name: str) -> None:
    schema = replace(SCHEMA, fields=(*SCHEMA.fields, Field("age*author_id", 6, "cross")))
    random = np.random.default_rng(0)
    rows = [example(i % 71, random, schema) for i in range(50)]
    torch.manual_seed(0)
    model = lively(RANKERS[name](schema))
    logits = model(pack(rows, schema))
    for row in rows:
        row["fields"][-1] = schema.offsets[-1] + (row["fields"][-1] - schema.offsets[-1] + 1) % 6
    assert (model(pack(rows, schema)) != logits).all(dim=1).any()


@every_ranker
def test_works_when_nobody_has_a_history(name: str) -> None:
    rows = examples(5)
    empty = [{key: value[:0] if "." in key else value for key, value in row.items()} for row in rows]
    assert build(name)(pack(empty)).isfinite().all()


@every_ranker
def test_every_parameter_and_every_slice_of_it_learns(name: str) -> None:
    """A slice is a code, an expert, a task's tower, a domain: not a unit of a linear layer, which ReLU may silence.

    There are rows enough for every user to come to every domain.
    """
    model, batch = lively(build(name)).train(), pack(examples(2_000))
    batch["labels"] = torch.randint(2, (2_000, 2), generator=torch.Generator().manual_seed(0)).float()
    objective(model, batch, masked_bce).backward()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    units = {id(parameter) for module in linear for parameter in module.parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad.any(), key
        if parameter.ndim > 1 and id(parameter) not in units:
            learns = parameter.grad.flatten(1).any(dim=1)
            assert learns.all(), f"{key}: slices {(~learns).nonzero().flatten().tolist()} get no gradient"


@every_ranker
def test_a_row_scores_the_same_alone_shuffled_and_in_other_company(name: str) -> None:
    model, rows = lively(build(name)), examples(40)
    together = model(pack(rows))
    alone = torch.cat([model(pack([row])) for row in rows])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    order = np.random.default_rng(1).permutation(40)
    torch.testing.assert_close(model(pack([rows[i] for i in order])), together[order], atol=1e-5, rtol=1e-5)
    mine = [i for i in range(40) if rows[i]["domain"] == 1]
    torch.testing.assert_close(model(pack([rows[i] for i in mine])), together[mine], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("asker", [[0, 0, 0, 1, 1, 2, 3, 3], [0] * 5])
@every_ranker
def test_candidates_that_share_a_history_score_as_if_each_had_its_own(name: str, asker: list[int]) -> None:
    model = RANKERS[name](SCHEMA).eval()
    random = np.random.default_rng(3)
    people = [example(user, random) for user in range(4)]
    people[1]["clicked.fields"], people[1]["clicked.gap"] = np.zeros((0, 2), int), np.zeros(0, int)
    rows = []
    for owner in asker:
        own = {**example(owner, random), "domain": people[owner]["domain"]}
        rows.append({**own, **{key: value for key, value in people[owner].items() if key.split(".")[0] in NAMES}})
    apart, told = pack(rows), pack(people[: asker[-1] + 1])
    shared = {key: told[key] if key.split(".")[0] in NAMES else value for key, value in apart.items()}
    with torch.inference_mode():
        together = model({**shared, "asker": torch.tensor(asker)})
    torch.testing.assert_close(together, model(apart), rtol=1e-4, atol=1e-5)


@every_ranker
def test_scoring_twice_is_identical_and_leaves_the_state_untouched(name: str) -> None:
    model, batch = lively(build(name)), pack(examples(20))
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model(batch), model(batch))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_ranker
def test_a_reloaded_twin_scores_identically(name: str) -> None:
    model, twin, batch = lively(build(name)), build(name, seed=1).eval(), pack(examples(20))
    assert not torch.equal(model(batch), twin(batch))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(batch), twin(batch))


@every_ranker
def test_memorises_64_rows(name: str) -> None:
    """Random clicks, and random likes of what was clicked; the log loss counts as it would be scored, after 150 steps
    of AdamW: large ones, but not so large that a cross network, which is a polynomial of its input, runs away."""
    model, batch = build(name), pack(examples(64))
    labels = torch.randint(2, (64, 2), generator=torch.Generator().manual_seed(0)).float().cumprod(dim=1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0)
    for _ in range(150):
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(model(batch), labels).backward()
        optimiser.step()
    assert functional.binary_cross_entropy_with_logits(model.eval()(batch), labels) < 0.05


@every_ranker
def test_a_misspelt_hyper_parameter_is_an_error(name: str) -> None:
    with pytest.raises(TypeError, match="widht"):
        RANKERS[name](SCHEMA, widht=8)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """torch.compile cannot look through the shape checks of the other tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@every_ranker
@pytest.mark.usefixtures("unchecked_shapes")
def test_compiles_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()
    model, batch = lively(build(name)), pack(examples(20))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), model(batch), atol=1e-5, rtol=1e-5)
    model.train()
    assert compiled(batch).requires_grad


@every_ranker
def test_bfloat16_autocast_is_close(name: str) -> None:
    model, batch = lively(build(name)), pack(examples(100))
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
        model.train()(batch).sum().backward()
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("name", [name for name in RANKERS if "dropout" in signature(RANKERS[name]).parameters])
def test_dropout_disturbs_training_alone(name: str) -> None:
    model, batch = build(name, dropout=0.5), pack(examples(20))
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@every_ranker
def test_its_loss_and_gradients_are_finite_where_labels_are_unknown(name: str) -> None:
    model, batch = lively(build(name)), pack(examples(40))
    labels = torch.randint(2, (40, 2), generator=torch.Generator().manual_seed(0)).float()
    labels[::3, 1] = torch.nan
    loss = objective(model.train(), {**batch, "labels": labels}, masked_bce)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_lr_on_paper() -> None:
    """Weights 1, 2, 3, … down the table, for items in a history 0.1, 0.2, 0.3, and for the two numbers 1 and 10."""
    schema = Schema(
        (Field("user_id", 2, "user"), Field("item_id", 3, "item")),
        (Number("a", "user"), Number("b", "item", mean=1.0, std=2.0)),
        (Sequence("clicked", ("item_id",), 5, 2),),
        ("click",),
        ("home",),
    )
    model = RANKERS["lr"](schema)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.weights.table.weight.data = torch.tensor([[1.0, 9.0], [2.0, 9.0], [3.0, 0.1], [4.0, 0.2], [5.0, 0.3]])
    model.slopes.data = torch.tensor([[1.0], [10.0]])
    batch = {
        "fields": torch.tensor([[0, 2], [1, 4]]),
        "numbers": torch.tensor([[0.5, 1.0], [0.0, 2.0]]),
        "domain": torch.tensor([0, 0]),
        "clicked.fields": torch.tensor([[3], [4]]),
        "clicked.gap": torch.tensor([0, 1]),
        "clicked.row": torch.tensor([0, 0]),
    }
    torch.testing.assert_close(model(batch), torch.tensor([[1 + 3 + 0.5 + 0.25], [2 + 5 + 5.0]]))


def test_mmoe_with_one_expert_is_a_plain_network_for_each_label() -> None:
    model, batch = lively(build("mmoe", experts=1, hidden=(8,), tower=(6,))), pack(examples(20))
    shared = (model.inputs(batch) @ model.experts.layers[0].weight[0] + model.experts.layers[0].bias[0]).relu()
    first, last = model.towers.layers
    for label in range(2):
        tower = (shared @ first.weight[label] + first.bias[label]).relu()
        logit = tower @ last.weight[label] + last.bias[label]
        torch.testing.assert_close(model(batch)[:, [label]], logit)


def test_star_without_corrections_is_the_shared_network() -> None:
    """W_p = 1 and b_p = 0 at the start; a running mean of 0 and variance of 1 make the normalisation the identity."""
    model, batch = build("star").eval(), pack(examples(100))
    plain = mlp(model.others.width, 128, 64, 2)
    for linear, layer in zip(plain[::2], model.layers, strict=True):
        linear.weight.data, linear.bias.data = layer.weight.data.T, layer.bias.data
    x = model.inputs(batch)
    auxiliary = model.auxiliary(torch.cat([model.domain(batch["domain"]), x], dim=1))
    torch.testing.assert_close(model(batch), plain(model.others(x)) + auxiliary, atol=1e-4, rtol=1e-4)


def test_star_gives_each_domain_its_own_weights() -> None:
    """Against a network written out row by row."""
    model, batch = lively(build("star")), pack(examples(100))
    x, domain = torch.randn(100, model.others.width), batch["domain"]
    rows = []
    for row, p in zip(x, domain.tolist(), strict=True):
        for i, layer in enumerate(model.layers):
            row = row @ (layer.weight * layer.domain_weight[p]) + layer.bias + layer.domain_bias[p]
            row = row.relu() if i < 2 else row
        rows.append(row)
    torch.testing.assert_close(model.star(x, domain), torch.stack(rows), atol=1e-4, rtol=1e-4)


def test_star_trains_a_domain_on_its_own_rows_alone() -> None:
    model, batch = lively(build("star")).train(), pack(examples(50))
    logits = model(batch)
    logits[batch["domain"] == 1].sum().backward()
    for layer in model.layers:
        assert layer.domain_weight.grad[1].any()
        assert layer.domain_bias.grad[1].any()
        for other in (0, 2):
            assert not layer.domain_weight.grad[other].any()
            assert not layer.domain_bias.grad[other].any()


def test_partitioned_norm_in_training_against_a_loop_over_domains() -> None:
    """Domain 2 has one row and domain 3 none: they keep, and use, their running statistics."""
    torch.manual_seed(0)
    norm = lively(PartitionedNorm(4, 3)).train()
    nn.init.constant_(norm.standardise.mean, 0.5)
    nn.init.constant_(norm.standardise.variance, 2.0)
    z, domain = torch.randn(12, 3), torch.tensor([0, 1, 0, 1, 1, 2, 0, 1, 0, 0, 1, 1])
    got = norm(z, domain)
    for p in range(4):
        mine = z[domain == p]
        mean, variance = (
            (mine.mean(0), mine.var(0, unbiased=False)) if p < 2 else (torch.tensor(0.5), torch.tensor(2.0))
        )
        scale, shift = norm.scale * norm.domain_scale[p], norm.shift + norm.domain_shift[p]
        torch.testing.assert_close(got[domain == p], scale * (mine - mean) / (variance + 1e-5).sqrt() + shift)
        running = (0.9 * 0.5 + 0.1 * mine.mean(0), 0.9 * 2 + 0.1 * mine.var(0)) if p < 2 else (0.5, 2.0)
        torch.testing.assert_close(norm.standardise.mean[p], torch.as_tensor(running[0]).expand(3))
        torch.testing.assert_close(norm.standardise.variance[p], torch.as_tensor(running[1]).expand(3))


def test_pepnet_with_gates_of_one_is_a_plain_network_for_each_label() -> None:
    """A gate whose weights are zero is 2σ(0) = 1."""
    model, batch = lively(build("pepnet", hidden=(8, 4))), pack(examples(20))
    for module in (model.embedding_gate, model.towers):
        for parameter in module.gate.parameters():
            nn.init.zeros_(parameter)
    for label in range(2):
        x = model.inputs(batch)
        for i, layer in enumerate(model.towers.layers):
            x = x @ layer.weight[label] + layer.bias[label]
            x = x.relu() if i < 2 else x
        torch.testing.assert_close(model(batch)[:, [label]], x)


def test_pepnet_gates_do_not_train_the_embeddings_they_look_at() -> None:
    """With towers that cannot pass a gradient on, only the three ids of the prior get one, through the second gate."""
    model, batch = lively(build("pepnet")), pack(examples(20))
    model.towers.layers[0].weight.data.zero_()
    model(batch).sum().backward()
    gradient = model.inputs.embed.table.weight.grad
    told = batch["fields"][:, [0, 2, 3]].unique()
    assert gradient[told].any(dim=1).all()
    gradient[told] = 0
    assert not gradient.any()


@pytest.mark.usefixtures("unchecked_shapes")
def test_sim_finds_by_category_before_it_embeds() -> None:
    """Here by author: but for the newest event, those of other authors change nothing, those of the candidate's own do;
    rows stay apart."""
    model, rows = lively(build("sim", category="author_id", keep=2, recent=1)), examples(40)
    together = model(pack(rows))
    alone = torch.cat([model(pack([row])) for row in rows])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pack(rows)), together)

    def without(own: bool) -> Tensor:
        cut = []
        for row in rows:
            kept = (row["clicked.fields"][:, 1] == row["fields"][3]) != own
            kept[-1:] = True
            cut.append({key: value[kept] if key.startswith("clicked.") else value for key, value in row.items()})
        return model(pack(cut))

    torch.testing.assert_close(without(own=False), together)
    assert (without(own=True) - together).abs().max() > 1e-3


def test_din_prefers_what_is_like_the_candidate_where_a_mean_cannot() -> None:
    """The label is whether the candidate is among the user's last items: FlatDNN, whose mean of the history meets the
    candidate only in the network, is further from it after the same training."""
    random = np.random.default_rng(0)
    rows = [example(0, random) for _ in range(400)]
    labels = torch.tensor([[float(row["fields"][2] in row["clicked.fields"][:, 0])] * 2 for row in rows])
    batch, losses = pack(rows), {}
    for name in ("flat_dnn", "din"):
        model = build(name)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(60):
            optimiser.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(batch), labels)
            loss.backward()
            optimiser.step()
        losses[name] = loss.item()
    assert losses["din"] < 0.5 * losses["flat_dnn"]
