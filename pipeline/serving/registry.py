"""The bundles of a data folder, and the aliases that name them.

Neither engine nor API is imported here: a service of several processes reads this before it has either.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline import lake
from pipeline.config import Config
from pipeline.lake import InputError

FOLDER, CONFIG = "bundles", "config.json"
KEEP = 4


def read_config(folder: Path) -> Config:
    """The configuration that a bundle was made with."""
    return TypeAdapter(Config).validate_python(json.loads((folder / CONFIG).read_text()))


def promote(place: Path, alias: str, name: str) -> None:
    """Let an alias name this bundle. It remembers the three before; older ones that no alias remembers are removed."""
    told = read_alias(place, alias)
    before = [one for one in (told.get("bundle"), *told.get("previous", [])) if one and one != name]
    lake.write_json(place / f"{alias}.json", {"bundle": name, "previous": before[: KEEP - 1]})
    named = {one for path in place.glob("*.json") for one in _named(json.loads(path.read_text()))}
    for old in set(before) - named:
        shutil.rmtree(place / old, ignore_errors=True)


def roll_back(place: Path, alias: str) -> str:
    """Let an alias name the bundle that it named before; returns that one's name."""
    told = read_alias(place, alias)
    if not told.get("previous"):
        raise InputError(f"{place}/{alias}.json: there is no bundle before {told.get('bundle', 'the first')}")
    name, *others = told["previous"]
    lake.write_json(place / f"{alias}.json", {"bundle": name, "previous": [*others, told["bundle"]]})
    return str(name)


def read_alias(place: Path, alias: str) -> dict[str, Any]:
    """What an alias names: `bundle`, and those before it as `previous`; nothing where there is no such alias."""
    path = place / f"{alias}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def current(place: Path, alias: str) -> str:
    """The name of the bundle that an alias names. Raises `InputError` where there is none."""
    name = read_alias(place, alias).get("bundle")
    if name is None or not (place / name).is_dir():
        raise InputError(f"{place}/{alias}.json: names no bundle that is there; recfunnel bundle CONFIG makes one")
    return str(name)


def _named(alias: dict[str, Any]) -> list[str]:
    return [alias["bundle"], *alias["previous"]]
