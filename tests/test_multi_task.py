"""Multi-task rankers against numbers on paper, plain loops, exact zeros where no gradient may go, and known worlds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_rankers import SCHEMA, build, examples, lively, pack
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from models import RANKERS, Schema
from models.experts import Extraction, mix_own_and_shared, mix_reaching
from models.layers import Bank
from models.objective import objective
from models.rankers.ame import buckets
from models.rankers.esmm import both
from models.schema import Field
from pipeline.ranking.losses import masked_bce


def slice_of(bank: Bank, k: int, x: Tensor) -> Tensor:
    """One network of a bank, for one row, layer by layer."""
    for i, layer in enumerate(bank.layers):
        x = x @ layer.weight[k] + layer.bias[k]
        x = x.relu() if i < bank.activated else x
    return x


def distribution(gates: nn.Module, g: int, x: Tensor) -> Tensor:
    """One gate, for one row."""
    return (x @ gates.score.weight[g] + gates.score.bias[g]).softmax(dim=0)


def labelled(count: int, labels: int = 2) -> dict[str, Tensor]:
    known = torch.randint(2, (count, labels), generator=torch.Generator().manual_seed(0)).float().cumprod(dim=1)
    return {**pack(examples(count)), "labels": known}


def test_shared_bottom_is_one_network_and_a_tower_for_each_label() -> None:
    model, batch = lively(build("shared_bottom", hidden=(8, 4), tower=(3,))), pack(examples(5))
    for x, logits in zip(model.inputs(batch), model(batch), strict=True):
        first, last = model.bottom[0][0], model.bottom[0][2]
        bottom = (last.weight @ (first.weight @ x + first.bias).relu() + last.bias).relu()
        expected = torch.cat([slice_of(model.towers, label, bottom) for label in range(2)])
        torch.testing.assert_close(logits, expected)


def test_omoe_gives_all_towers_the_same_mixture() -> None:
    model, batch = lively(build("omoe", experts=3, hidden=(8,), tower=(4,))), pack(examples(5))
    for x, logits in zip(model.inputs(batch), model(batch), strict=True):
        gate = distribution(model.gate, 0, x)
        mixture = sum(gate[k] * slice_of(model.experts, k, x) for k in range(3))
        expected = torch.cat([slice_of(model.towers, label, mixture) for label in range(2)])
        torch.testing.assert_close(logits, expected)


def test_both_on_paper() -> None:
    """σ(0) = 1/2 and σ(log 3) = 3/4, with products 1/4 = 1 : 3 and 3/8 = 3 : 5."""
    a, b = torch.zeros(2), torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(both(a, b), torch.tensor([1 / 3, 3 / 5]).log())


@pytest.mark.parametrize("a", [-300.0, -30.0, -1.0, 0.0, 30.0, 300.0])
@pytest.mark.parametrize("b", [-300.0, -30.0, 2.0, 30.0, 300.0])
def test_both_is_a_product_in_log_space_with_bounded_gradients(a: float, b: float) -> None:
    x, y = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    logit = both(x, y)
    wide = torch.tensor([a, b], dtype=torch.float64)
    torch.testing.assert_close(logsigmoid(logit), logsigmoid(wide).sum().float())
    for gradient in torch.autograd.grad(logit, (x, y)):
        assert 0 <= gradient < 1.001
    if max(abs(a), abs(b)) < 100:
        log_p = logsigmoid(wide).sum()
        torch.testing.assert_close(logit, (log_p - log_p.expm1().neg().log()).float())


def test_esmm_multiplies_along_the_path() -> None:
    """buy after like after click, share after click; what the schema lacks is left out."""
    schema = replace(SCHEMA, labels=("buy", "click", "like", "share", "relevance"))
    path = (("buy", "like"), ("like", "click"), ("share", "click"), ("convert", "click"), ("relevance", "shown"))
    model, batch = lively(RANKERS["esmm"](schema, path=path)), pack(examples(20))
    buy, click, like, share, relevance = model.given_condition(batch).sigmoid().unbind(1)
    expected = torch.stack([buy * like * click, click, like * click, share * click, relevance], dim=1)
    torch.testing.assert_close(model(batch).sigmoid(), expected)


def test_esmm_by_default_knows_the_log_s_labels() -> None:
    schema = replace(SCHEMA, labels=("click", "long_view", "like", "convert", "relevance"))
    model, batch = lively(RANKERS["esmm"](schema)), pack(examples(20))
    click, *after, relevance = model.given_condition(batch).sigmoid().unbind(1)
    expected = torch.stack([click, *(label * click for label in after), relevance], dim=1)
    torch.testing.assert_close(model(batch).sigmoid(), expected)


def test_esmm_without_a_path_is_plain_networks() -> None:
    model, batch = lively(build("esmm", path=(), hidden=(4,))), pack(examples(5))
    for x, logits in zip(model.inputs(batch), model(batch), strict=True):
        torch.testing.assert_close(logits, torch.cat([slice_of(model.networks, label, x) for label in range(2)]))


def test_esmm_refuses_a_path_in_a_circle() -> None:
    with pytest.raises(ValueError, match="circle"):
        build("esmm", path=(("click", "like"), ("like", "click")))


def test_esmm_trains_pcvr_by_the_product_alone() -> None:
    """With p = σ(a) σ(b), the loss of y ∈ {0, 1} has the gradient (p − y)(1 − σ(a))/(1 − p) by pCVR's logit a. That is
    all pCVR gets, and gets on every row: those without a click too, as far as a click was likely."""
    model, batch = lively(build("esmm")), labelled(40)
    clicked = batch["labels"][:, 0] == 1
    given = model.given_condition(batch).detach().sigmoid()
    p, y = given.prod(dim=1), batch["labels"][:, 1]
    gradient = (p - y) * (1 - given[:, 1]) / (1 - p)
    objective(model, batch, masked_bce).backward()
    torch.testing.assert_close(model.networks.layers[-1].bias.grad[1, 0], gradient.mean())
    assert (gradient[~clicked] > 0).all()

    model.zero_grad()
    model.networks.layers[-1].bias.data[0] = -60.0
    unclicked = {**batch, "labels": torch.zeros(40, 2)}
    objective(model, unclicked, masked_bce).backward()
    assert model.networks.layers[-1].bias.grad[1].abs() < 1e-20


def test_esmm_is_in_float32_and_finite_under_bfloat16_with_sure_networks() -> None:
    model, batch = lively(build("esmm")).train(), labelled(40)
    model.networks.layers[-1].bias.data = torch.tensor([[30.0], [-30.0]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch)
        objective(model, batch, masked_bce).backward()
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_mix_own_and_shared_on_paper() -> None:
    """Task 0: 0.5·1 + 0.25·10 + 0.25·20; task 1: 1·2 + 0·10 + 2·20."""
    gates = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 0.0, 2.0]]])
    own, shared = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([[[10.0], [20.0]]])
    assert torch.equal(mix_own_and_shared(gates, own, shared), torch.tensor([[[8.0], [42.0]]]))


def test_mix_reaching_reads_all_experts_and_trains_those_reached() -> None:
    gates = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 0.0, 2.0]]], requires_grad=True)
    experts = torch.tensor([[[1.0], [10.0], [20.0]]], requires_grad=True)
    mixed = mix_reaching(gates, experts, torch.tensor([[True, False, True], [False, False, True]]))
    assert torch.equal(mixed, torch.tensor([[[8.0], [41.0]]]))
    mixed.sum().backward()
    assert torch.equal(experts.grad, torch.tensor([[[0.5], [0.0], [2.25]]]))
    assert torch.equal(gates.grad, torch.tensor([[[1.0, 10.0, 20.0], [1.0, 10.0, 20.0]]]))


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("one_input", [True, False])
@pytest.mark.parametrize(("own", "shared"), [(1, 2), (2, 1)])
def test_extraction_against_loops(top: bool, one_input: bool, own: int, shared: int) -> None:
    torch.manual_seed(0)
    tasks = 3
    level = Extraction(5, tasks, own, shared, (6, 4), 0.0, top=top)
    x = torch.randn(7, 5) if one_input else torch.randn(7, tasks + 1, 5)
    out = level(x)
    assert out.shape == (7, tasks if top else tasks + 1, 4)
    for row, got in zip(x, out, strict=True):
        inputs = [row] * (tasks + 1) if one_input else list(row)
        numbers = [range(own * task, own * (task + 1)) for task in range(tasks)]
        numbers.append(range(own * tasks, own * tasks + shared))
        experts = [[slice_of(level.experts, k, inputs[group]) for k in numbers[group]] for group in range(tasks + 1)]
        for task in range(tasks):
            gate = distribution(level.gates, task, inputs[task])
            read = experts[task] + experts[tasks]
            torch.testing.assert_close(got[task], sum(w * e for w, e in zip(gate, read, strict=True)))
        if not top:
            gate = distribution(level.shared_gate, 0, inputs[tasks])
            everything = [expert for group in experts for expert in group]
            torch.testing.assert_close(got[tasks], sum(w * e for w, e in zip(gate, everything, strict=True)))


def test_cgc_keeps_a_label_from_the_experts_of_another() -> None:
    model, batch = lively(build("cgc", own=2, shared=1)).train(), pack(examples(40))
    model(batch)[:, 0].sum().backward()
    for layer in model.extraction.experts.layers:
        assert [bool(grad.any()) for grad in layer.weight.grad] == [True, True, False, False, True]
    assert not model.extraction.gates.score.weight.grad[1].any()


def test_ple_lets_a_label_reach_another_s_experts_below_the_top_by_the_shared_gate() -> None:
    model, batch = lively(build("ple", own=2, shared=1)).train(), pack(examples(40))
    model(batch)[:, 0].sum().backward()
    lower, upper = ([bool(grad.any()) for grad in level.experts.layers[0].weight.grad] for level in model.levels)
    assert (lower, upper) == ([True] * 5, [True, True, False, False, True])


def test_ple_of_one_level_is_cgc() -> None:
    ple, cgc, batch = lively(build("ple", levels=1)), build("cgc").eval(), pack(examples(20))
    cgc.load_state_dict({key.replace("levels.0", "extraction"): value for key, value in ple.state_dict().items()})
    assert torch.equal(ple(batch), cgc(batch))


def test_stem_against_loops() -> None:
    model, batch = lively(build("stem", width=2, experts=2, hidden=(5,), tower=(4,))), pack(examples(5))
    x = model.experts.inputs(batch)
    rows = zip(*model.experts.tables(x), model(batch), strict=True)
    for *tables, logits in rows:
        experts = [slice_of(model.experts.experts, k, tables[k // 2]) for k in range(6)]
        for label in range(2):
            gate = distribution(model.gates, label, torch.cat([tables[label], tables[2]]))
            mixture = sum(w * e for w, e in zip(gate, experts, strict=True))
            torch.testing.assert_close(logits[label], slice_of(model.towers, label, mixture)[0])


def table_gradients(experts: nn.Module) -> list[bool]:
    """Whether each table of embeddings, those of the time gaps included, has a gradient that is not exactly zero."""
    weights = [module.weight for module in experts.inputs.modules() if isinstance(module, nn.Embedding)]
    width = experts.tables.widths[0]
    parts = [weight.grad.unflatten(1, (-1, len(experts.tables.widths), width)) for weight in weights]
    return [any(bool(part[:, :, table].any()) for part in parts) for table in range(len(experts.tables.widths))]


@pytest.mark.parametrize("label", [0, 1])
def test_stem_trains_a_label_s_own_table_and_the_shared_one_alone(label: int) -> None:
    model, batch = lively(build("stem")).train(), pack(examples(40))
    model(batch)[:, label].sum().backward()
    own = [label == 0, label == 1, True]
    assert table_gradients(model.experts) == own
    assert [bool(grad.any()) for grad in model.experts.experts.layers[0].weight.grad] == own


def test_stem_reads_all_tables() -> None:
    """With experts of another label's table changed, a label scores differently."""
    model, batch = lively(build("stem")), pack(examples(20))
    before = model(batch)
    model.experts.experts.layers[0].weight.data[1] *= 2
    assert (model(batch)[:, 0] != before[:, 0]).all()


THREE = replace(SCHEMA, labels=("click", "like", "share"))


def stem_al(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return lively(RANKERS["stem_al"](THREE, main="like", **options))


@pytest.mark.parametrize(("label", "own"), [(0, [1, 0, 0, 1]), (1, [0, 1, 0, 1]), (2, [0, 0, 1, 1])])
def test_stem_al_sends_gradients_where_stem_does(label: int, own: list[int]) -> None:
    model, batch = stem_al().train(), pack(examples(40))
    model(batch)[:, label].sum().backward()
    assert table_gradients(model.main.experts) == [bool(flag) for flag in own]


def test_stem_al_shows_all_experts_to_the_main_label_and_to_the_others_their_own_and_the_shared() -> None:
    reads = {0: [True, True, False], 1: [False, True, False], 2: [False, True, True], 3: [True, True, True]}
    for table, expected in reads.items():
        model, batch = stem_al(), pack(examples(20))
        before = model(batch)
        model.main.experts.experts.layers[0].weight.data[table] *= 2
        assert (model(batch) != before).any(dim=0).tolist() == expected


def test_stem_al_against_loops() -> None:
    model, batch = stem_al(width=2, experts=2, hidden=(5,), tower=(4,)), pack(examples(5))
    x = model.main.experts.inputs(batch)
    for *tables, logits in zip(*model.main.experts.tables(x), model(batch), strict=True):
        experts = [slice_of(model.main.experts.experts, k, tables[k // 2]) for k in range(8)]
        gate = distribution(model.main.gate, 0, torch.cat([tables[1], tables[3]]))
        main = model.main.tower(sum(w * e for w, e in zip(gate, experts, strict=True)))
        torch.testing.assert_close(logits[1], main[0])
        for place, label in enumerate((0, 2)):
            gate = distribution(model.gates, place, torch.cat([tables[label], tables[3]]))
            read = [experts[k] for k in (2 * label, 2 * label + 1, 6, 7)]
            mixture = sum(w * e for w, e in zip(gate, read, strict=True))
            torch.testing.assert_close(logits[label], slice_of(model.towers, place, mixture)[0])


@pytest.mark.parametrize(("alpha", "weights"), [(0.2, (0.2, 1.0, 0.2)), ((0.1, 0.3), (0.1, 1.0, 0.3))])
def test_stem_al_weighs_the_losses(alpha: float | tuple[float, ...], weights: tuple[float, ...]) -> None:
    model, batch = stem_al(alpha=alpha), labelled(40, labels=3)
    click, like, share = masked_bce(model(batch), batch)
    expected = weights[0] * click + weights[1] * like + weights[2] * share
    torch.testing.assert_close(objective(model, batch, masked_bce), expected)


def test_stem_al_is_served_without_its_auxiliary_parts() -> None:
    """What is cut for each auxiliary label: a gate over two experts and a tower."""
    model, batch = stem_al(hidden=(5,), tower=(4,)), pack(examples(40))
    served = model.export()
    assert torch.equal(served(batch), model(batch)[:, [1]])
    size = sum(parameter.numel() for parameter in model.parameters())
    cut = 2 * ((model.main.experts.told + 1) * 2 + (5 + 1) * 4 + (4 + 1) * 1)
    assert sum(parameter.numel() for parameter in served.parameters()) == size - cut
    assert {id(parameter) for parameter in served.parameters()} < {id(parameter) for parameter in model.parameters()}


def test_stem_al_of_one_label_has_no_auxiliary_parts() -> None:
    torch.manual_seed(0)
    model, batch = RANKERS["stem_al"](replace(SCHEMA, labels=("click",))), labelled(10, labels=1)
    assert torch.equal(model.eval().export()(batch), model(batch))
    torch.testing.assert_close(objective(model, batch, masked_bce), masked_bce(model(batch), batch)[0])


@pytest.mark.parametrize(
    ("data", "count", "expected"),
    [
        ((0.3, 0.01, 0.1, 0.02, 0.2, 0.001), 3, [2, 0, 1, 1, 2, 0]),
        ((0.0, 0.0, 0.0, 0.0), 2, [1, 1, 0, 0]),
        ((0.1, 0.5), 3, [1, 2]),
        ((0.1,), 3, [2]),
    ],
)
def test_buckets_on_paper(data: tuple[float, ...], count: int, expected: list[int]) -> None:
    assert buckets(data, count) == expected


def test_ame_against_loops() -> None:
    """Three labels in two buckets: click and share read one mixture, like another."""
    torch.manual_seed(0)
    model = lively(RANKERS["ame"](THREE, widths=(2, 3), tasks_data=(0.5, 0.1, 0.4), hidden=(5,), tower=(4,)))
    batch = pack(examples(5))
    x = model.inputs(batch)
    for row, *tables, logits in zip(x, *model.tables(x), model(batch), strict=True):
        experts = [expert(table) for expert, table in zip(model.experts, tables, strict=True)]
        for label, gate in enumerate((1, 0, 1)):
            weights = distribution(model.gates, gate, row)
            mixture = sum(w * e for w, e in zip(weights, experts, strict=True))
            torch.testing.assert_close(logits[label], slice_of(model.towers, label, mixture)[0])


def test_ame_begins_with_a_bucket_s_own_table_and_counts_the_data() -> None:
    torch.manual_seed(0)
    model = RANKERS["ame"](THREE, tasks_data=(0.1, 0.3, 0.2), liking=100.0).eval()
    own = model.gates(model.inputs(pack(examples(5))))[:, model.gate]
    torch.testing.assert_close(own, torch.eye(3)[[0, 2, 1]].expand(5, 3, 3))
    with pytest.raises(ValueError, match="2 numbers for 3 labels"):
        RANKERS["ame"](THREE, tasks_data=(0.1, 0.3))


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_ame_serves_100_labels_from_three_tables_in_as_many_operations_as_3() -> None:
    counts = []
    for labels in (3, 100):
        torch.manual_seed(0)
        model = RANKERS["ame"](replace(SCHEMA, labels=tuple(f"task {label}" for label in range(labels))))
        tables = [module for module in model.inputs.embed.modules() if isinstance(module, nn.Embedding)]
        assert sum(table.weight.numel() for table in tables) == SCHEMA.table_size * (8 + 16 + 32)
        batch = pack(examples(20))
        with Operations() as operations:
            model(batch).sum().backward()
        counts.append(operations.count)
    assert counts[0] == counts[1]


def world(users: int, items: int, labels: tuple[str, ...]) -> Schema:
    return Schema((Field("user_id", users, "user"), Field("item_id", items, "item")), (), (), labels, ("home",))


def rows(users: Tensor, items: Tensor, count: int, labels: Tensor) -> dict[str, Tensor]:
    """A batch of pairs; `count` is the number of users."""
    return {
        "fields": torch.stack([users, items + count], dim=1),
        "numbers": torch.zeros(len(users), 0),
        "domain": torch.zeros(len(users), dtype=torch.long),
        "labels": labels,
    }


def trained(name: str, schema: Schema, batch: dict[str, Tensor], steps: int, rate: float, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = RANKERS[name](schema, **options)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(model, batch, masked_bce).backward()
        optimiser.step()
    return model.eval()


def test_labels_that_pull_apart_are_learnt_by_experts_of_their_own() -> None:
    """The first label is u + i > 0, the second u − i > 0, and every network has a single number to say it with."""
    random = torch.Generator().manual_seed(0)
    u, i = torch.randn(2, 30, generator=random)
    users, items = torch.arange(30).repeat_interleave(30), torch.arange(30).repeat(30)
    labels = torch.stack([u[users] + i[items] > 0, u[users] - i[items] > 0], dim=1).float()
    seen = torch.rand(900, generator=random) < 0.7
    train, test = (rows(users[part], items[part], 30, labels[part]) for part in (seen, ~seen))
    losses = {}
    for name in ("shared_bottom", "cgc", "ple", "stem"):
        model = trained(name, world(30, 30, ("click", "like")), train, 120, 0.05, width=2, hidden=(1,), tower=())
        losses[name] = binary_cross_entropy_with_logits(model(test), test["labels"]).item()
    assert max(losses["cgc"], losses["ple"], losses["stem"]) < 0.5 * losses["shared_bottom"], losses


def test_ame_learns_100_labels_of_unequal_size_as_well_as_stem_in_a_tenth_of_the_memory() -> None:
    """Five tastes, each of twenty labels; of the first label all is known, of the last one pair in twenty.

    AME is ahead, since its labels share tables; at none of the rates and steps tried was STEM.
    """
    random = torch.Generator().manual_seed(0)
    u, i = torch.randn(2, 5, 20, generator=random)
    users, items = torch.arange(20).repeat_interleave(20), torch.arange(20).repeat(20)
    truth = (u[:, users] + i[:, items] > 0).T.float()[:, torch.arange(100) % 5]
    known = torch.linspace(1, 0.05, 100)
    labels = truth.where(torch.rand(400, 100, generator=random) < known, torch.nan)
    seen = torch.rand(400, generator=random) < 0.7
    train, test = rows(users[seen], items[seen], 20, labels[seen]), rows(users[~seen], items[~seen], 20, truth[~seen])
    schema = world(20, 20, tuple(f"task {label}" for label in range(100)))
    losses, memory = {}, {}
    for name, options in (("stem", {"width": 4}), ("ame", {"widths": (4, 8, 16), "tasks_data": tuple(known.tolist())})):
        model = trained(name, schema, train, 60, 0.02, hidden=(8,), tower=(), **options)
        losses[name] = binary_cross_entropy_with_logits(model(test), test["labels"]).item()
        memory[name] = sum(table.weight.numel() for table in model.modules() if isinstance(table, nn.Embedding))
    assert losses["ame"] < 1.1 * losses["stem"], losses
    assert memory["ame"] < 0.1 * memory["stem"]


def test_esmm_knows_rare_conversions_better_than_clicks_times_a_model_of_the_clicked() -> None:
    """Clicks and conversions follow one taste. A model of the clicked fifth of the rows soon knows them by heart, where
    ESMM has its embeddings from all rows. (Each network stopped at its own best time, the two would be level.)

    All networks are trained alike; the log loss is measured against the true probability.
    """
    random = torch.Generator().manual_seed(0)
    u, i = torch.randn(2, 100, generator=random)

    def draw(count: int) -> tuple[dict[str, Tensor], Tensor]:
        users, items = torch.randint(100, (2, count), generator=random)
        p = torch.sigmoid(u[users] + i[items] - 2)
        click, convert = (torch.rand(2, count, generator=random) < p).float().cumprod(dim=0)
        return rows(users, items, 100, torch.stack([click, convert], dim=1)), p * p

    train, (test, truth) = draw(6_000)[0], draw(10_000)
    options = {"width": 4, "hidden": (16,)}

    def alone(column: int, rows: Tensor) -> Tensor:
        label = ("click", "convert")[column]
        batch = {key: value[rows] for key, value in train.items()}
        batch["labels"] = batch["labels"][:, [column]]
        return trained("flat_dnn", world(100, 100, (label,)), batch, 40, 0.02, **options)(test)[:, 0].sigmoid()

    def log_loss(p: Tensor) -> float:
        return -(truth * p.log() + (1 - truth) * (-p).log1p()).mean().item()

    esmm = trained("esmm", world(100, 100, ("click", "convert")), train, 40, 0.02, **options)
    joint = log_loss(esmm(test)[:, 1].sigmoid())
    clicked = train["labels"][:, 0] == 1
    product = log_loss(alone(0, torch.ones_like(clicked)) * alone(1, clicked))
    assert log_loss(truth) < joint < 0.9 * product
