"""Checkpoints of training on disk, from which it goes on as if it had not been interrupted.

A checkpoint is a folder, `at-0002-00000500` for one in epoch 2 after 500 batches, of `tensors.safetensors` and
`told.json`; the weights of the best epoch so far lie beside the checkpoints, in `best-0001.safetensors`. Each is
written under a temporary name and renamed, so that a kill at any moment leaves only whole ones. Of several processes
each writes its own tensors, `tensors-1.safetensors`, into a folder that all of them see, and the first does the rest.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models import processes

TOLD = "told.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What training goes on from: the epoch, how many of its batches are done, the best epoch so far (0 if there is
    none), tensors by name, and what else JSON can tell."""

    epoch: int
    batches: int
    best: int
    tensors: dict[str, Tensor]
    told: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, of which the last `keep` are kept."""

    folder: Path
    keep: int = KEEP

    def write(self, checkpoint: Checkpoint) -> None:
        """Write it; then remove what no longer counts."""
        from safetensors.torch import save_file

        unfinished = self.folder / ".unfinished"
        if processes.place() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        processes.wait()
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, unfinished / _own("tensors"))
        processes.wait()
        if processes.place() > 0:
            return
        place = {name: getattr(checkpoint, name) for name in ("epoch", "batches", "best", "told")}
        (unfinished / TOLD).write_text(json.dumps(place))
        unfinished.rename(self.folder / f"at-{checkpoint.epoch:04d}-{checkpoint.batches:08d}")
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        needed = {f"best-{json.loads((path / TOLD).read_text())['best']:04d}" for path in self._all()}
        for old in self.folder.glob("best-*.safetensors"):
            if not old.name.startswith(tuple(needed)):
                old.unlink()

    def write_best(self, epoch: int, weights: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{_own('best')}"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, unfinished)
        unfinished.replace(self._best(epoch))

    def latest(self) -> Checkpoint | None:
        from safetensors.torch import load_file

        written = self._all()
        if not written:
            return None
        told = json.loads((written[-1] / TOLD).read_text())
        return Checkpoint(tensors=load_file(written[-1] / _own("tensors")), **told)

    def best(self, epoch: int) -> dict[str, Tensor]:
        """The weights of the epoch, which a checkpoint told to be the best."""
        from safetensors.torch import load_file

        return load_file(self._best(epoch))

    def _all(self) -> list[Path]:
        """From the oldest to the newest; a kill may have left an old one half removed, but never the newest."""
        return sorted(path for path in self.folder.glob("at-*") if (path / TOLD).exists())

    def _best(self, epoch: int) -> Path:
        return self.folder / _own(f"best-{epoch:04d}")


def _own(name: str) -> str:
    """The file of this process."""
    place = processes.place()
    return f"{name}-{place}.safetensors" if place else f"{name}.safetensors"
