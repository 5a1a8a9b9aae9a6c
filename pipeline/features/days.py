"""Days of facts on disk: each computed once, and found again by all it was made from.

A day's fingerprint is chained: settings and code, the day's events, what is known of the users and items it sees first,
and the fingerprint of the day before. So a new day leaves the old ones as they are, and a day whose events have changed
is recomputed with all after it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.features import facts
from pipeline.features.facts import Job, Settings
from pipeline.features.partition import BEFORE, Day
from pipeline.lake import MANIFEST, code_version, describe, hash_value, write_json

STRETCHES = 4
STRETCH = 1 << 23

One = TypeVar("One")
Result = TypeVar("Result")


class Each(Protocol):
    """Calls a function with each of some values, here or elsewhere, and returns the results in their order."""

    def __call__(self, function: Callable[[One], Result], values: Sequence[One], /) -> list[Result]: ...


def one_by_one(function: Callable[[One], Result], values: Sequence[One]) -> list[Result]:
    return [function(value) for value in values]


@dataclass(frozen=True)
class Chain:
    """The log's days in order and the fingerprint of each."""

    settings: str
    days: tuple[Day, ...]
    fingerprints: tuple[str, ...]


def chain(settings: Settings, history: str, days: list[Day], seen: dict[int, str]) -> Chain:
    """Fingerprints of all days; `history` is the hash of the prior history, `seen` that of the users and items that are
    first seen on a day (`first_seen`)."""
    start = hash_value([code_version(facts.write), asdict(settings), history, seen.get(BEFORE, "")])
    fingerprints, before = [], start
    for day in days:
        before = hash_value([before, day.day, day.digest, seen.get(day.day, "")])
        fingerprints.append(before[:16])
    return Chain(hash_value([start]), tuple(days), tuple(fingerprints))


def first_seen(first_day: npt.NDArray[np.integer], columns: Sequence[npt.NDArray[Any]]) -> dict[int, str]:
    """By day a hash of the rows of some columns (N, …) that were first seen then; `first_day` (N,) is ascending."""
    days, begins = np.unique(first_day, return_index=True)
    ends = [*begins[1:], len(first_day)]
    return {
        int(day): xxhash.xxh3_128_hexdigest(b"".join(np.ascontiguousarray(one[begin:end]).tobytes() for one in columns))
        for day, begin, end in zip(days, begins, ends, strict=True)
    }


def update(
    kept: Path, chained: Chain, *, work: Path, settings: Settings, domains: int, each: Each
) -> tuple[list[Path], dict[str, float]]:
    """Compute the days of the chain that `kept` does not hold, and drop those that are not of the chain.

    A day's folder appears there whole. Returns the folders in order, and counts: days, days_computed, missing_days
    (between the first and the last), and of the days that were already over when they were last looked at late_events,
    rows added since, and changed_days.
    """
    kept.mkdir(parents=True, exist_ok=True)
    folders = [kept / f"{day.date}-{print_}" for day, print_ in zip(chained.days, chained.fingerprints, strict=True)]
    new = next((place for place, folder in enumerate(folders) if not folder.exists()), len(folders))
    if new < len(folders):
        for leftover in kept.glob(".staging-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=kept))
        each(facts.write, jobs(chained.days, new, work=work, out=staging, settings=settings, domains=domains))
        for folder, day, print_ in list(zip(folders, chained.days, chained.fingerprints, strict=True))[new:]:
            made = staging / day.date
            write_json(made / MANIFEST, {"fingerprint": print_, "files": describe(made)})
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        staging.rmdir()
    numbers: dict[str, float] = {
        "days": len(folders),
        "days_computed": len(folders) - new,
        "missing_days": chained.days[-1].day - chained.days[0].day + 1 - len(folders),
        **_late(kept / MANIFEST, chained),
    }
    told = {day.date: [day.events, print_] for day, print_ in zip(chained.days, chained.fingerprints, strict=True)}
    write_json(kept / MANIFEST, {"fingerprint": chained.fingerprints[-1], "settings": chained.settings, "days": told})
    for other in set(kept.glob("????-??-??-*")) - set(folders):
        shutil.rmtree(other, ignore_errors=True)
    return folders, numbers


def jobs(
    days: tuple[Day, ...], new: int, *, work: Path, out: Path, settings: Settings, domains: int, whole: bool = False
) -> list[Job]:
    """The jobs that write the days from place `new` on: one for each part of the users, and a few, each of successive
    days (one if they are to be a `whole`), for what is counted over all users."""

    def job(side: facts.Side, parts: tuple[int, ...], first: int, until: int) -> Job:
        return Job(
            side=side,
            work=work,
            out=out,
            settings=settings,
            domains=domains,
            parts=parts,
            days=tuple(day.day for day in days[:until]),
            events=tuple(day.events for day in days[:until]),
            first=days[first].day,
        )

    parts = tuple(range(settings.parts))
    made = [job("user", (part,), new, len(days)) for part in parts]
    if settings.entities("shared"):
        total = np.cumsum([day.events for day in days[new:]])
        count = 1 if whole else int(min(STRETCHES, total[-1] // STRETCH + 1))
        ends = sorted(
            {int(np.searchsorted(total, total[-1] * (place + 1) / count)) + 1 + new for place in range(count)}
        )
        made += [job("shared", parts, begin, end) for begin, end in zip([new, *ends], ends, strict=False)]
    return made


def link(folders: list[Path], out: Path) -> None:
    """Let the days' files lie in folders of `out` named by date: the same files, or copies on another disk."""
    for folder in folders:
        target = out / folder.name[:10]
        target.mkdir(parents=True)
        for path in folder.glob("*.parquet"):
            try:
                os.link(path, target / path.name)
            except OSError:
                shutil.copy2(path, target / path.name)


def _late(manifest: Path, chained: Chain) -> dict[str, float]:
    """Of the days that were over when the kept ones were written: rows added since, and days that are not the same."""
    before = json.loads(manifest.read_text()) if manifest.exists() else {"settings": None, "days": {}}
    closed = dict(sorted(before["days"].items())[:-1]) if before["settings"] == chained.settings else {}
    last = max(closed, default="")
    late = changed = 0
    for day, print_ in zip(chained.days, chained.fingerprints, strict=True):
        if day.date <= last:
            events, known = closed.get(day.date, (0, ""))
            late += max(day.events - events, 0)
            changed += print_ != known
    return {"late_events": late, "changed_days": changed}
