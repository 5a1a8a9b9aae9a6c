"""One of several processes that train the fine ranker: `python -m pipeline.ranking.fine_part JOB`, by a launcher."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from models import processes, sharding
from models.layers import FieldEmbedding
from pipeline.config import Fine
from pipeline.features.store import FeatureStore
from pipeline.lake import write_json
from pipeline.ranking import fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.launch import process_group
from pipeline.ranking.merged import Merged


@record
def work(job: Path) -> None:
    """Train with the others what the job says; the first writes the weights and what training came to beside it."""
    from safetensors.torch import save_file

    asked = json.loads(job.read_text())
    settings = TypeAdapter(Fine).validate_python(asked["settings"])
    epochs: list[dict[str, Any]] = []
    with process_group():
        store = FeatureStore.open(Path(asked["features"]))
        given = fine.examples(store, Merged.open(Path(asked["recall"])), settings, asked["seed"])
        model, fitted = fine.learn(
            Encoder(store),
            given.schema,
            given.training,
            given.held_out,
            settings=settings,
            seed=asked["seed"],
            log=lambda metrics, epoch: epochs.append({"metrics": metrics, "epoch": epoch}),
            checkpoints=Path(asked["checkpoints"]) if asked["checkpoints"] else None,
        )
        weights = whole(model)
        if processes.place() == 0:
            save_file(weights, job.with_name(fine.WEIGHTS))
            write_json(job.with_name(fine.TOLD), {"fitted": asdict(fitted), "epochs": epochs})


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights, with the rows of its tables that any process holds; of use in the first process alone."""
    weights = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, FieldEmbedding):
            table = sharding.whole(module.table.weight.detach(), module.size)
            weights |= {} if table is None else {f"{name}.table.weight": table}
    return weights


if __name__ == "__main__":
    work(Path(sys.argv[1]))
