"""One of several processes that run a stage together: `python -m pipeline.ranking.worker JOB`, by a launcher."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from torch.distributed.elastic.multiprocessing.errors import record

from models import processes
from pipeline.lake import write_json
from pipeline.ranking.launch import TOLD, process_group


@record
def work(job: Path) -> None:
    """Do with the others what the job says (`pipeline.ranking.launch.together`)."""
    with process_group(), tempfile.TemporaryDirectory() as elsewhere:
        told = json.loads(job.read_text())
        module, name = told["stage"]
        stage = getattr(importlib.import_module(module), name)
        kinds = get_type_hints(stage)
        given = {name: TypeAdapter(kinds[name]).validate_python(value) for name, value in told["arguments"].items()}
        if processes.place() > 0:
            given["out"] = Path(elsewhere)
        epochs: list[dict[str, Any]] = []
        metrics = stage(**given, log=lambda metrics, epoch: epochs.append({"metrics": metrics, "epoch": epoch}))
        if processes.place() == 0:
            write_json(job.with_name(TOLD), {"metrics": metrics, "epochs": epochs})


if __name__ == "__main__":
    work(Path(sys.argv[1]))
