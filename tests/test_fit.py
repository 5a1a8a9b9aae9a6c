import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.layers import BankLinear
from pipeline.ranking.fit import fit

INPUT = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
TARGET = INPUT @ torch.tensor([1.0, -2.0, 0.5])


def batches(epoch):
    yield from zip(INPUT.split(64), TARGET.split(64), strict=True)


def loss(model, batch):
    return F.mse_loss(model(batch[0])[:, 0].float(), batch[1])


def run(validate, model=None, **settings):
    torch.manual_seed(0)
    model = model or nn.Linear(3, 1)
    seen = []
    defaults = {"steps": 4, "epochs": 5, "learning_rate": 0.1, "monitor": "score"}
    fitted = fit(
        model,
        settings.pop("batches", batches),
        loss,
        validate,
        **{**defaults, **settings},
        log=lambda metrics, epoch: seen.append((epoch, metrics)),
    )
    return model, fitted, seen


def test_it_learns_and_logs_every_epoch():
    _, fitted, seen = run(lambda model: {"score": -loss(model, (INPUT, TARGET)).item()}, epochs=20, patience=20)
    assert [epoch for epoch, _ in seen] == list(range(1, 21))
    assert seen[-1][1]["loss"] < 0.05 * seen[0][1]["loss"]
    assert fitted.metrics["score"] > -0.05


def test_it_stops_early_and_keeps_the_weights_of_the_best_epoch():
    scores = iter([0.5, 0.9, 0.8, 0.7, 1.0])
    weights = []

    def validate(model):
        weights.append(model.weight.detach().clone())
        return {"score": next(scores)}

    model, fitted, seen = run(validate, patience=2)
    assert (fitted.epoch, fitted.epochs, len(seen)) == (2, 4, 4)
    assert fitted.seconds > 0
    assert torch.equal(model.weight, weights[1])
    assert not model.training


def test_with_the_memory_of_before_adam_steps_by_the_size_of_the_gradient():
    """Gradients of 1 and then .1 in two trainings of one step: as torch's AdamW that took both, not by the sign."""

    def step(model, gradient, memory=None):
        before = model.weight.item()
        fitted = fit(
            model, lambda epoch: [gradient], lambda model, batch: batch * model.weight.sum(),
            lambda model: {"score": 0.0}, steps=1, epochs=1, learning_rate=1.0, monitor="score",
            log=lambda *_: None, memory=memory,
        )  # fmt: skip
        return model.weight.item() - before, fitted.memory

    model, twin = (nn.Linear(1, 1, bias=False) for _ in range(2))
    first, memory = step(model, 1.0)
    anew, _ = step(model, 0.1)
    on, _ = step(model, 0.1, memory)
    dense = torch.optim.AdamW(twin.parameters(), lr=-first, weight_decay=0.0)
    for gradient in (1.0, 0.1):
        before = twin.weight.item()
        twin.weight.grad = torch.tensor([[gradient]])
        dense.step()
    assert anew == pytest.approx(first, rel=1e-4)
    assert on == pytest.approx(twin.weight.item() - before, rel=1e-4)
    assert abs(on) < 0.8 * abs(first)


def test_equal_seeds_give_equal_weights():
    first, second = (run(lambda model: {"score": 0.0})[0] for _ in range(2))
    assert torch.equal(first.weight, second.weight)


def test_decay_falls_on_matrices_and_tables_as_asked_and_never_on_biases():
    model = nn.Sequential(nn.Embedding(4, 3), BankLinear(2, 3, 1))
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def nothing(model, batch):
        return sum(parameter.sum() * 0.0 for parameter in model.parameters())

    fit(
        model,
        lambda epoch: [None],
        nothing,
        lambda model: {"score": 0.0},
        steps=1,
        epochs=1,
        learning_rate=0.1,
        weight_decay=0.5,
        monitor="score",
        log=lambda metrics, epoch: None,
    )
    table, matrix, bias = (torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert (table, matrix, bias) == (True, False, True)


def test_a_loss_that_is_not_finite_is_an_error():
    broken = [(torch.full((2, 3), float("nan")), torch.zeros(2))]
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(lambda model: {"score": 0.0}, batches=lambda epoch: broken)


class WideAndDeep(nn.Module):
    """Two linear maps of the same input, added."""

    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Linear(3, 1, bias=False), nn.Linear(3, 1)
        nn.init.zeros_(self.wide.weight)

    def ftrl_parameters(self):
        return [self.wide.weight]

    def forward(self, x):
        return self.wide(x) + self.deep(x)


def test_each_optimiser_trains_its_own_part():
    """One step from zero: the first moves FTRL's weights to -α (g - sgn(g) λ₁) / (β + |g|), whatever the learning rate
    of AdamW, which is so small here that the deep part stays where it was, nearly."""
    torch.manual_seed(0)
    model = WideAndDeep()
    loss(model, (INPUT, TARGET)).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    g, deep = model.wide.weight.grad * min(1, 5 / norm), model.deep.weight.detach().clone()
    run(
        lambda model: {"score": 0.0},
        model,
        batches=lambda epoch: [(INPUT, TARGET)],
        steps=1,
        epochs=1,
        learning_rate=1e-9,
    )
    expected = -0.1 * (g - g.sign() / 512) / (1 / 512 + g.abs())
    tolerance = {"atol": 1e-4, "rtol": 1e-2} if torch.cpu._is_avx512_bf16_supported() else {}
    torch.testing.assert_close(model.wide.weight.detach(), expected, **tolerance)
    torch.testing.assert_close(model.deep.weight.detach(), deep)


def test_both_parts_learn_together():
    _, _, seen = run(lambda model: {"score": 0.0}, WideAndDeep(), epochs=20, patience=20)
    assert seen[-1][1]["loss"] < 0.05 * seen[0][1]["loss"]
