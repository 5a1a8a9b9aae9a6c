"""Progress bars for long work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn, track
from rich.text import Text
from torch import Tensor

from models import processes

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, behind a bar that vanishes when they are done; silent where nobody is looking."""
    console = Console(stderr=True)
    yield from track(items, what, total=total, transient=True, console=console, disable=_silent(console))


class Speed(ProgressColumn):
    """Rows a second, of steps of so many rows."""

    def __init__(self, rows: float) -> None:
        super().__init__()
        self.rows = rows

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) * self.rows:,.0f} rows/s")


@contextmanager
def training(what: str, *, steps: int, rows: int | None, done: int) -> Iterator[Callable[[Tensor], None]]:
    """A line of an epoch of `steps` steps, of which `done` are over: rows a second if there are `rows` in it, loss and
    the time left; silent where nobody is looking. What it gives is to be called after each step with the mean loss."""
    console = Console(stderr=True)
    what_is_told = (
        TextColumn("{task.description}"),
        BarColumn(),
        *([Speed(rows / max(steps, 1))] if rows else []),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    line = Progress(*what_is_told, transient=True, console=console, disable=_silent(console))
    with line:
        task = line.add_task(what, total=steps, completed=done, loss=math.nan)
        yield lambda loss: line.update(task, advance=1, loss=loss)


def _silent(console: Console) -> bool:
    return not console.is_terminal or processes.place() > 0
