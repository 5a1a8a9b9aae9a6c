"""Progress bars for long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, behind a bar that vanishes when they are done; silent where nobody is looking."""
    console = Console(stderr=True)
    yield from track(items, what, total=total, transient=True, console=console, disable=not console.is_terminal)
