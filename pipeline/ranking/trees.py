"""Growing the trees of `gbdt_lr` with LightGBM, which scoring them does not need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.rankers.gbdt_lr import GBDTLR, MOST_CODES, Trees
from pipeline.ranking.batches import Batch

if TYPE_CHECKING:
    from lightgbm import Booster


def grow(model: GBDTLR, batches: Iterable[Batch], seed: int) -> None:
    """Give the model trees boosted on the rows whose first label is known; the first that is known anywhere. The
    columns that trees read of all rows are in memory."""
    columns, labels = zip(*((model.columns(batch), batch["labels"]) for batch in batches), strict=True)
    every = torch.cat(labels)
    label = int((~every.isnan()).any(dim=0).byte().argmax())
    known = ~every[:, label].isnan()
    write(model.trees, boost(torch.cat(columns)[known].numpy(), every[known, label].numpy(), model.trees, seed))


def boost(columns: np.ndarray, label: np.ndarray, trees: Trees, seed: int) -> Booster:
    """As many boosted trees, as large, as `trees` has room for; fewer where there is nothing left to split."""
    import lightgbm

    settings = {
        "objective": "binary",
        "num_leaves": trees.leaves,
        "max_depth": trees.depth,
        "max_bin": MOST_CODES,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": torch.get_num_threads(),
        "verbosity": -1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(columns, label), num_boost_round=len(trees.column))


def write(trees: Trees, booster: Booster) -> None:
    """Copy LightGBM's trees, with its numbers of splits and leaves; a tree without splits has all rows in leaf 0."""

    def place(node: dict[str, Any]) -> int:
        return int(node["split_index"] if "split_index" in node else trees.leaves - 1 + node["leaf_index"])

    trees.branches[:, : trees.leaves - 1] = trees.leaves - 1
    for number, tree in enumerate(booster.dump_model()["tree_info"]):
        for split in splits(tree["tree_structure"]):
            here = number, place(split)
            trees.column[here] = split["split_feature"]
            trees.threshold[here] = float32_below(split["threshold"])
            trees.branches[here] = torch.tensor([place(split["left_child"]), place(split["right_child"])])


def splits(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All splits of a dumped tree from a node downwards."""
    if "split_index" in node:
        yield node
        yield from splits(node["left_child"])
        yield from splits(node["right_child"])


def float32_below(value: float) -> float:
    """The largest float32 that is no larger: float32 numbers lie on the same sides of both."""
    rounded = np.float32(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf)))
