"""K2: do a field's embeddings fill their space? Guo et al., On the Embedding Collapse when Scaling up Recommendation
Models, ICML 2024, §3."""

from __future__ import annotations

import numpy as np
from torch import nn

from models.layers import FieldEmbedding
from models.schema import Schema


def information_abundance(table: np.ndarray) -> float:
    """Σσ_i / σ_1 of a table (codes, D): 1 where all its vectors are multiples of one, D where no direction stands out;
    NaN of a table of zeros."""
    singular = np.linalg.svd(table, compute_uv=False)
    return float(singular.sum() / singular[0]) if len(singular) and singular[0] > 0 else float("nan")


def by_field(model: nn.Module, schema: Schema) -> dict[str, float]:
    """The information abundance of each field's part of the model's fused table, of several tables the widest.

    Fields with fewer codes than the table is wide cannot fill it and are left out. Empty for a model without such a
    table.
    """
    embeddings = [module.table for module in model.modules() if isinstance(module, FieldEmbedding)]
    whole = [table.weight for table in embeddings if table.num_embeddings == schema.table_size]
    if not whole:
        return {}
    weights = max(whole, key=lambda table: table.shape[1]).detach().cpu().numpy()
    return {
        field.name: information_abundance(weights[offset : offset + field.size])
        for field, offset in zip(schema.fields, schema.offsets, strict=True)
        if field.size >= weights.shape[1]
    }
