"""Artefacts on disk: a stage writes a folder whole or not at all, and finds it again by its fingerprint.

A stage's folder is named after what it was made from, `features-3f9a…`: raw inputs, settings and code. An equal
fingerprint means equal content, so resuming is a look at the disk, and a changed file, option or line of code is a
new name beside the old one. The folder is filled under a temporary name and renamed: a kill leaves no half of it.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

MANIFEST = "manifest.json"
OURS = ("pipeline", "models")
KEEP = 4


class InputError(ValueError):
    """Input that its owner can mend: the message names the file, the column and the fix."""


def hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def hash_value(value: object) -> str:
    """Hash of a JSON-able value; dictionaries are ordered by key, so that their order does not matter."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def code_version(function: Callable[..., object]) -> str:
    """Hash of the source a function can reach: its module and, transitively, every module of ours it imports."""
    return _code_version(function.__module__)


@cache
def _code_version(module: str) -> str:
    hashes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = None if name in hashes else _source(name)
        if source is None:
            continue
        hashes[name] = hash_file(source)
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return hash_value(hashes)


def _source(name: str) -> Path | None:
    """The file of a module of ours; None for others' modules and for names that are no module."""
    if name.split(".")[0] not in OURS:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def fingerprint(stage: Callable[..., object], *, inputs: Iterable[Path] = (), **settings: object) -> str:
    """What a stage's output depends on, as 16 hex digits.

    A folder among `inputs` counts with the fingerprint it carries, a file with its bytes.
    """
    told = [read_manifest(path)["fingerprint"] if path.is_dir() else hash_file(path) for path in inputs]
    return hash_value([code_version(stage), told, settings])[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder}: no {MANIFEST}; run the stage that writes this folder first") from None
    return manifest


@dataclass(frozen=True)
class Stage:
    """A stage's place on disk: `path` exists if and only if the stage has been finished with this fingerprint."""

    path: Path
    fingerprint: str

    @property
    def done(self) -> bool:
        return (self.path / MANIFEST).exists()

    @property
    def checkpoints(self) -> Path:
        """A folder for what is to be found again after a kill; it goes when the stage is finished."""
        return self.path.with_name(f".checkpoints-{self.path.name}")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
        name = self.path.name.rsplit("-", 1)[0]
        with unfinished(self.path.parent, name) as folder:
            yield folder
            write_json(folder / MANIFEST, {"fingerprint": self.fingerprint, "files": describe(folder)})
            finish(folder, self.path)
        for checkpoints in self.path.parent.glob(f".checkpoints-{name}-*"):
            shutil.rmtree(checkpoints, ignore_errors=True)
        kept = sorted(self.path.parent.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEEP]:
            if old != self.path:
                shutil.rmtree(old, ignore_errors=True)


def stage(root: Path, name: str, print_: str) -> Stage:
    return Stage(root / f"{name}-{print_}", print_)


@contextmanager
def unfinished(place: Path, name: str) -> Iterator[Path]:
    """A temporary folder in `place` for what `finish` is to rename; it vanishes when the block does not end well, and
    with the next one of this name when it was left by a kill: then nobody holds its lock any more."""
    place.mkdir(parents=True, exist_ok=True)
    for leftover in place.glob(f".{name}-*"):
        with suppress(BlockingIOError, FileNotFoundError), _locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place))
    try:
        with _locked(folder), explain_full_disk(place / name):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock. Raises `BlockingIOError` where another does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def finish(folder: Path, path: Path) -> Path:
    """Let a folder be at `path`, unless what is there has been finished before; returns the path."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(folder)
    return path


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" into a message that names the folder and says that nothing was lost."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # polars and SQLite have exceptions of their own for it
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "disk is full" in str(error):
            free = shutil.disk_usage(path.parent).free / 2**30
            raise InputError(
                f"{path}: the disk is full ({free:.2f} GiB free); free some space and run again: "
                "finished stages are kept, this one starts anew"
            ) from error
        raise


def mapped(path: Path) -> npt.NDArray[Any]:
    """A file's array, mapped into memory, as a plain one: each slice of a `np.memmap` costs more than what is done with
    it."""
    return np.asarray(np.load(path, mmap_mode="r"))


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")
    temporary.replace(path)


def describe(folder: Path) -> dict[str, dict[str, object]]:
    """Bytes, hash and, for Parquet, rows of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "hash": hash_file(path),
            **({"rows": pq.read_metadata(path).num_rows} if path.suffix == ".parquet" else {}),
        }
        for path in files
    }
