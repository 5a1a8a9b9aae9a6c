"""L7: a trained model goes on where the vocabulary has changed.

Beside its weights a model keeps which feature id each of its codes stood for and up to when it has learnt. With a later
features folder, every row of its fused tables goes where its id now is; an id that was admitted since begins as the
field's unknown one, which it was to this model until now, and the row of one that was evicted goes. So a model that is
carried over and not trained scores as it did. What its optimisers remember goes along, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.layers import FieldEmbedding
from models.rowwise import CLOCK
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, write_json
from pipeline.parquet import read_parquet

WEIGHTS, IDS, TOLD, MEMORY = "model.safetensors", "known.safetensors", "known.json", "memory.safetensors"


@dataclass(frozen=True)
class Known:
    """What a model was trained on: rows before `until` (µs), labels as known at `as_of`; the names and sizes of the
    schema's fields, its domains and numbers, and for each field with a vocabulary the feature ids of codes 1, 2, …"""

    until: int
    as_of: int
    fields: tuple[tuple[str, int], ...]
    domains: tuple[str, ...]
    numbers: tuple[str, ...]
    ids: dict[str, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, store: FeatureStore) -> Known:
        """What a model is to know that is trained on the train slice of these features."""
        table = read_parquet(store.folder / "vocabulary.parquet", ["field", "fid", "code"])
        field, fid, code = (table[name].to_numpy() for name in ("field", "fid", "code"))
        order = np.lexsort((code, field))
        schema = store.schema
        return cls(
            until=store.slices["validation"],
            as_of=store.slices["end"],
            ids={str(name): fid[order][field[order] == name].astype(np.int64) for name in np.unique(field)},
            fields=tuple((one.name, one.size) for one in schema.fields),
            domains=schema.domains,
            numbers=tuple(one.name for one in schema.numbers),
        )

    def write(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.ids, folder / IDS)
        write_json(folder / TOLD, {name: value for name, value in vars(self).items() if name != "ids"})

    @classmethod
    def read(cls, folder: Path) -> Known:
        """Raises `InputError` for a model that was trained before this was kept of it."""
        from safetensors.numpy import load_file

        for name in (TOLD, MEMORY):
            if not (folder / name).exists():
                raise InputError(f"{folder}: no {name}, without which it cannot go on; train it again")
        told = json.loads((folder / TOLD).read_text())
        return cls(
            until=told["until"],
            as_of=told["as_of"],
            fields=tuple((name, size) for name, size in told["fields"]),
            domains=tuple(told["domains"]),
            numbers=tuple(told["numbers"]),
            ids=load_file(folder / IDS),
        )

    def rows(self, before: Known) -> Tensor:
        """For every row of the fused table, the row in which the model that knew `before` had it: (table size,).

        Raises `InputError` where fields, domains or numbers are not those of before.
        """
        for kind in ("fields", "domains", "numbers"):
            ours, theirs = ([one[0] if kind == "fields" else one for one in getattr(of, kind)] for of in (self, before))
            if ours != theirs:
                strange = sorted({*ours} ^ {*theirs}) or ours
                raise InputError(f"the {kind} are not the champion's ({', '.join(strange)}): train anew, recfunnel run")
        parts, offset = [], 0
        for (name, size), (_, size_before) in zip(self.fields, before.fields, strict=True):
            codes = np.arange(size)
            if name in self.ids:
                codes = np.concatenate([[0], codes_of(self.ids[name], before.ids[name])])
            parts.append(offset + np.where(codes < size_before, codes, 0))
            offset += size_before
        return torch.from_numpy(np.concatenate(parts))

    def moved(self, before: Known) -> dict[str, float]:
        """How many ids of all fields stayed, entered and left since `before`."""
        stayed = sum(int(np.isin(ids, before.ids[name]).sum()) for name, ids in self.ids.items())
        now, then = (sum(map(len, one.ids.values())) for one in (self, before))
        return {"ids_carried": stayed, "ids_entered": now - stayed, "ids_left": then - stayed}


def check_new(features: Path, champion: Path) -> None:
    """Raise `InputError` where the train slice of these features ends where that of the champion did."""
    until = json.loads((features / "slices.json").read_text())["validation"]
    if until <= Known.read(champion).until:
        raise InputError("events: no impression since the champion was trained; refresh when the log has grown")


def codes_of(ids: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The code of each id (N,) where the codes 1, 2, … stand for `known`; 0 for another."""
    if not len(known):
        return np.zeros(len(ids), np.int64)
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    found = order[place]
    return np.where(known[found] == ids, found + 1, 0)


@dataclass(frozen=True)
class Champion:
    """A trained model's weights, what it knew, and what its optimisers remember (`pipeline.ranking.fit.Fitted`)."""

    weights: dict[str, Tensor]
    known: Known
    memory: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Champion:
        from safetensors.torch import load_file

        known = Known.read(folder)
        return cls(load_file(folder / WEIGHTS), known, load_file(folder / MEMORY))

    def into(self, model: nn.Module, now: Known) -> dict[str, Tensor]:
        """Give a model of the schema that is known `now` the weights that go on, and return the memory that does.

        Raises `InputError` where the model is of another shape.
        """
        tables = {
            f"{name}.table.weight" for name, module in model.named_modules() if isinstance(module, FieldEmbedding)
        }
        rows = now.rows(self.known)
        weights = {name: value[rows] if name in tables else value for name, value in self.weights.items()}
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        for name in sorted(wanted.keys() | weights.keys()):
            theirs = weights[name].shape if name in weights else None
            if wanted.get(name) != theirs:
                told = f"{name} is {_size(wanted.get(name))}, the champion's {_size(theirs)}"
                raise InputError(f"the settings are not the champion's: {told}; train anew, recfunnel run")
        model.load_state_dict(weights)
        memory = {}
        for path, value in self.memory.items():
            name, _, what = path.rpartition(".")
            memory[path] = value[rows] if name in tables and what not in CLOCK else value.clone()
        return memory


def remember(known: Known, memory: Mapping[str, Tensor], folder: Path) -> None:
    """Write beside a model's weights what a later training goes on from."""
    from safetensors.torch import save_file

    known.write(folder)
    save_file({name: value.contiguous() for name, value in memory.items()}, folder / MEMORY)


Start = Callable[[nn.Module], Mapping[str, Tensor]]
"""What gives a new model its first weights, and returns what its optimisers remember."""


def _size(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a number"
