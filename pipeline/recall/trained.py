"""The files of a trained route: its model's weights and settings, and the index of its items' vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

from torch import nn

from pipeline.lake import hash_file, write_json
from pipeline.ranking.carry import WEIGHTS
from pipeline.recall import index as nearest
from pipeline.recall import index_choice
from pipeline.recall.index import Floats, Integers, Nearest

INDEX = "index"

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, folder: Path, name: str, settings: dict[str, object]) -> None:
    """Write the weights and, under this name, what the model was made and trained with."""
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / name, settings)


def load(model: Model, folder: Path) -> Model:
    """Give a model the weights in the folder, for scoring."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def copy(model: Path, folder: Path, *names: str) -> None:
    """Copy the weights of a model's folder and the files of these names."""
    for name in (WEIGHTS, *names):
        shutil.copyfile(model / name, folder / name)


def write_index(folder: Path, vectors: Floats, ids: Integers, how: str, queries: Floats, *, name: str) -> None:
    """Write an index, as `index_choice.make` makes it, of vectors that the weights in the folder have made."""
    made = index_choice.make(vectors, ids, how, queries, model=hash_file(folder / WEIGHTS), name=name)
    (folder / INDEX).mkdir()
    made.save(folder / INDEX)


def load_index(folder: Path, dimension: int) -> Nearest:
    """Raises `InputError` for an index that the weights in the folder have not made."""
    return nearest.load(folder / INDEX, dimension, hash_file(folder / WEIGHTS))
