"""Information abundance of tables whose singular values are known, and of tables that a world makes collapse."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import RANKERS
from models.schema import Field, Schema
from pipeline.diagnostics.collapse import by_field, information_abundance
from pipeline.ranking.losses import masked_bce


def test_abundance_counts_the_directions_that_are_used() -> None:
    """The singular values of diag(4, 2, 1, 1) are 4, 2, 1, 1: 8 / 4 = 2."""
    assert information_abundance(np.diag([4.0, 2.0, 1.0, 1.0])) == pytest.approx(2)
    assert information_abundance(np.outer(np.arange(1.0, 9), [1.0, 2.0, 3.0])) == pytest.approx(1)
    assert information_abundance(np.eye(5, 3)) == pytest.approx(3)
    assert math.isnan(information_abundance(np.zeros((5, 3))))


def test_each_field_is_measured_on_its_own_part_of_the_table() -> None:
    fields = (Field("user_id", 20, "user"), Field("gender", 3, "user"), Field("item_id", 30, "item"))
    schema = Schema(fields, (), (), ("click",), ("home",))
    model = RANKERS["flat_dnn"](schema, width=4)
    table = model.inputs.embed.table.weight.data
    table[:20] = torch.outer(torch.arange(20.0), torch.ones(4))
    nn.init.normal_(table[23:], generator=torch.Generator().manual_seed(0))
    found = by_field(model, schema)
    assert list(found) == ["user_id", "item_id"]
    assert found["user_id"] == pytest.approx(1, rel=1e-4)
    assert found["item_id"] > 2.5
    assert by_field(nn.Linear(1, 1), schema) == {}
    fm = RANKERS["fm"](schema, width=4)
    nn.init.ones_(fm.linear.weights.table.weight)
    assert by_field(fm, schema)["item_id"] > 2.5


FIELDS = (Field("item_id", 200, "item"), *(Field(name, 4, "user") for name in "abc"), Field("domain", 2, "context"))
COLLAPSING = Schema(fields=FIELDS, numbers=(), sequences=(), labels=("click",), domains=("x", "y"))


def collapsing_world(rows: int) -> dict[str, Tensor]:
    """Three fields of four values, which want to agree and so to share four directions; every item has a taste of its
    own in each of them, which needs twelve."""
    tastes = torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.stack([torch.randint(field.size, (rows,)) for field in FIELDS], dim=1)
    logit = sum(0.8 * tastes[codes[:, 0], k, codes[:, 1 + k]] for k in range(3))
    for one, other in combinations((1, 2, 3), 2):
        logit = logit + 1.5 * (codes[:, one] == codes[:, other]) - 0.4
    return {
        "fields": codes + torch.tensor(COLLAPSING.offsets),
        "numbers": torch.zeros(rows, 0),
        "domain": codes[:, 4],
        "labels": torch.bernoulli(torch.as_tensor(logit).sigmoid())[:, None],
    }


def test_several_tables_fill_the_space_that_one_as_wide_leaves_empty() -> None:
    """E1: of sixteen directions one table of sixteen uses 8.7 on average, four tables of four 9.5."""
    abundance: dict[int, list[float]] = {1: [], 4: []}
    for seed in range(3):
        for tables, found in abundance.items():
            torch.manual_seed(seed)
            model = RANKERS["multi_embedding"](COLLAPSING, width=16 // tables, tables=tables)
            batch = collapsing_world(20_000)
            optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
            for index in torch.cat([torch.randperm(20_000) for _ in range(6)]).split(500):
                part = {name: column[index] for name, column in batch.items()}
                optimiser.zero_grad()
                masked_bce(model(part), part).sum().backward()
                optimiser.step()
            found.append(by_field(model, COLLAPSING)["item_id"])
    assert np.greater(abundance[4], abundance[1]).all()
    assert np.mean(abundance[4]) > 1.05 * np.mean(abundance[1])
