"""F10, chosen by a learnt gate: which fields a trained SENet lets through.

Make fields of all candidates (`features.crosses.pairs`), train `senet`, and list those pairs that come first here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from models.rankers.senet import SENet
from models.schema import Schema
from pipeline.ranking.batches import Batch


@torch.inference_mode()
def by_gate(model: SENet, schema: Schema, batches: Iterable[Batch]) -> dict[str, float]:
    """How much of each field gets into the network, the greatest first: the gate's mean weight over the batches' rows
    times the norm of the first layer's weights for what it lets through.

    Vectors reach the gate standardised, so that fields compare. The gate's weight alone says little: what the layer
    behind it does not read, nothing teaches the gate to shut out.
    """
    gate = torch.cat([model.weights(batch) for batch in batches]).mean(dim=0)
    first = model.net[0]
    assert isinstance(first, nn.Linear)
    vectors = len(model.vectors)
    read = first.weight[:, : vectors * model.vectors.width].unflatten(1, (vectors, -1)).square().sum(dim=(0, 2)).sqrt()
    names = (field.name for field in schema.fields)
    weights = dict(zip(names, (gate * read).tolist(), strict=False))
    return dict(sorted(weights.items(), key=lambda one: -one[1]))
