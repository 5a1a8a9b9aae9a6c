"""Parts of rankers on top of each other: every part works with every other, and known stacks are what they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_rankers import build, examples, lively, pack

from models.objective import objective
from models.rankers.composed import ENCODERS
from pipeline.ranking.losses import masked_bce

INTERACTIONS = ("none", "fm", "ipnn", "cin", "dcnv2")
STRUCTURES = (
    {},
    {"tables": 2},
    {"levels": 1, "own": 0, "shared": 3},
    {"levels": 2, "tables": 2, "epnet": True, "ppnet": True},
    {"levels": 1, "ppnet": True},
    {"epnet": True},
)


@pytest.mark.parametrize(("encoder", "interaction"), list(itertools.product(ENCODERS, INTERACTIONS)))
def test_every_part_works_with_every_other(encoder: str, interaction: str) -> None:
    rows = examples(60)
    labels = torch.randint(2, (60, 2), generator=torch.Generator().manual_seed(0)).float()
    for structure in STRUCTURES:
        options = {"width": 4, "hidden": (8,), "tower": (6,), "gate": 5, **structure}
        model = lively(build("composed", encoder=encoder, interaction=interaction, **options))
        together = model(pack(rows))
        assert together.shape == (60, 2)
        torch.testing.assert_close(model(pack(rows[7:9])), together[7:9], atol=1e-5, rtol=1e-4)
        objective(model.train(), {**pack(rows), "labels": labels}, masked_bce).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_bare_it_is_an_expert_under_the_towers() -> None:
    model, batch = lively(build("composed")), pack(examples(20))
    x = model.inputs(batch)
    seen = torch.cat([model.vectors(x).flatten(1), x[:, model.vectors.embedded :]], dim=1)
    torch.testing.assert_close(model(batch), model.towers(model.experts[0].net(seen)).flatten(1))


def test_one_level_without_own_experts_is_mmoe() -> None:
    """The extraction is MMoE's experts and gates, behind the table's expert."""
    model, batch = lively(build("composed", levels=1, own=0, shared=3)), pack(examples(20))
    twin = lively(build("composed"))
    twin.load_state_dict(model.state_dict(), strict=False)
    (level,) = model.extraction
    x = twin.inputs(batch)
    expert = twin.experts[0](twin.vectors(x).flatten(2), x[:, twin.vectors.embedded :])
    for label in range(2):
        gate = (expert @ level.gates.score.weight[label] + level.gates.score.bias[label]).softmax(1)
        experts = level.experts(expert)
        mixed = (gate[:, :, None] * experts).sum(dim=1)
        torch.testing.assert_close(model(batch)[:, label], model.towers(mixed)[:, label, 0], atol=1e-5, rtol=1e-5)


def test_an_encoders_own_loss_is_part_of_the_whole() -> None:
    model = lively(build("composed", encoder="dien", auxiliary=0.5))
    batch = {**pack(examples(30)), "labels": torch.zeros(30, 2)}
    _, of_encoder = model.inputs.with_loss(batch)
    assert of_encoder > 0
    expected = masked_bce(model(batch), batch).sum() + 0.5 * of_encoder
    torch.testing.assert_close(objective(model, batch, masked_bce), expected)


@pytest.mark.parametrize(
    ("options", "told"), [({"encoder": "dinn"}, "one of mean, din"), ({"interaction": "ffm"}, "one of none, fm")]
)
def test_an_unknown_part_is_named(options: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build("composed", **options)
