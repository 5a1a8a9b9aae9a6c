"""A stage, kept from an earlier run or made now, printed and tracked alike."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from rich.console import Console

from pipeline import lake
from pipeline.tracking import Run

RETURNED = "returned.json"


def io_failed(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether trying again may help: a disk or a network failed, and it was not the input."""
    return isinstance(state.data, OSError)


READING: dict[str, Any] = {"retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": io_failed}


def keep_or_make(
    task: Task[..., Any],
    name: str,
    *inputs: Path | dict[str, Path],
    root: Path,
    run: Run,
    reads: Sequence[Path] = (),
    tell: Sequence[str] = (),
    beside: dict[str, Any] | None = None,
    trains: bool = False,
    **settings: Any,
) -> Path:
    """The folder of a finished stage: `task(*inputs, out=…, **settings)` is run only if there is none yet.

    The fingerprint covers the inputs, the raw files in `reads`, the settings and the code the task reaches. What the
    task returns, and the epochs it logs when it `trains`, is kept beside its output: a kept stage reports the same
    numbers as one just made. The metrics named in `tell` are printed. What is passed in `beside` does not change the
    output.
    """
    folders = [folder for one in inputs for folder in (one.values() if isinstance(one, dict) else [one])]
    fingerprint = lake.fingerprint(task.fn, inputs=(*folders, *reads), **settings)
    stage = lake.stage(root, name, fingerprint)
    kept = stage.done
    begun = time.perf_counter()
    with run.child(name) as child:
        child.tag(fingerprint=fingerprint, kept=str(kept))
        child.parameters(json.loads(json.dumps(settings, default=vars)))
        if not kept:
            epochs: list[dict[str, Any]] = []
            told = {"log": lambda metrics, step: epochs.append({"step": step, "metrics": metrics})} if trains else {}
            with stage.writing() as out:
                returned = task(*inputs, out=out, **settings, **(beside or {}), **told)
                metrics = returned if isinstance(returned, dict) else {}
                lake.write_json(out / RETURNED, {"metrics": metrics, "epochs": epochs})
        seconds = time.perf_counter() - begun
        returned = json.loads((stage.path / RETURNED).read_text())
        for epoch in returned["epochs"]:
            child.log(epoch["metrics"], epoch["step"])
        child.log({**returned["metrics"], "seconds": seconds})
        child.artefacts(sorted(path for kind in ("*.png", "*.html") for path in stage.path.glob(kind)))
    _say(name, None if kept else seconds, {key: returned["metrics"][key] for key in tell})
    return stage.path


def numbers(folder: Path) -> dict[str, float]:
    """The metrics that a finished stage returned."""
    metrics: dict[str, float] = json.loads((folder / RETURNED).read_text())["metrics"]
    return metrics


def _say(name: str, seconds: float | None, told: dict[str, float]) -> None:
    how = "unchanged, kept" if seconds is None else f"{seconds:.1f} s"
    numbers = " · ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in told.items())
    Console(highlight=False).print(f"[bold]{name:<18}[/]{how:>16}   [dim]{numbers}[/]", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
