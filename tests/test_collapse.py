"""Information abundance of tables whose singular values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import RANKERS
from models.schema import Field, Schema
from pipeline.diagnostics.collapse import by_field, information_abundance


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
