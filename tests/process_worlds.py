"""What `test_processes` has one, two or four processes train: `python -m process_worlds JOB`, by a launcher."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from test_rankers import SCHEMA, examples, pack
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from models import RANKERS, processes
from models.layers import FieldEmbedding, Standardise, whole
from models.objective import objective
from models.schema import Field, Schema
from pipeline.features.store import FeatureStore, Recipe
from pipeline.lake import write_json
from pipeline.ranking.batches import Encoder, in_order
from pipeline.ranking.fit import fit
from pipeline.ranking.launch import process_group
from pipeline.ranking.losses import masked_bce
from pipeline.ranking.stream import Stored, shuffled

ROWS = examples(16 * 4 + 5)
WORLDS = {
    "din": {"hidden": (8,), "width": 4, "activation": "dice"},
    "star": {"hidden": (8,), "width": 4},
    "wide_deep": {"hidden": (8,), "width": 4},
}


class KilledError(Exception):
    pass


def labelled(rows: Tensor) -> dict[str, Tensor]:
    """A batch of these rows, some of whose labels are unknown."""
    batch = pack([ROWS[row] for row in rows])
    labels = (batch["fields"][:, :2] % 2).float()
    labels[:, 1] = labels[:, 1].where(batch["numbers"][:, 0] < 1, torch.nan)
    return {**batch, "labels": labels}


def train(
    name: str, *, checkpoints: Path | None = None, kill_at: int = -1, **options: object
) -> tuple[nn.Module, list[float], int]:
    """A ranker trained for three epochs on batches of 16 rows, the last of 5; the loss of each, and its steps here."""
    torch.manual_seed(0)
    model = RANKERS[name](SCHEMA, **{**WORLDS[name], **options})
    curve: list[float] = []
    steps = 0

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(16):
            yield labelled(processes.part(index))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal steps
        if steps == kill_at:
            raise KilledError
        steps += 1
        with torch.autocast("cpu", enabled=False):  # bfloat16 would round other sums otherwise
            return objective(model, batch, masked_bce)

    def validate(model: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            logits = processes.joined(model(labelled(processes.part(torch.arange(20)))))
        return {"score": float(logits.sum()) + processes.place()}

    fit(
        model,
        batches,
        loss,
        validate,
        steps=5,
        epochs=3,
        learning_rate=0.01,
        embedding_decay=1.0,
        table_optimiser="adagrad" if name == "star" else "adamw",
        monitor="score",
        patience=3,
        log=lambda metrics, epoch: curve.append(metrics["loss"]),
        checkpoints=checkpoints,
        every=2,
    )
    return model, curve, steps


def store() -> FeatureStore:
    """Twelve users, one item."""
    fields = Field("user_id", 13, "user"), Field("item_id", 2, "item"), Field("domain", 2, "context")
    schema = Schema(fields, (), (), ("click",), ("home",))
    return FeatureStore(
        folder=Path(),
        schema=schema,
        slices={},
        recipe=Recipe((), (), (), (), False, {}, {}),
        users={"code_user_id": np.arange(13)},
        items={"code_item_id": np.arange(2)},
        behaviours={},
        events={name: np.zeros(0, np.int64) for name in ("user", "item", "domain", "time", "shows")},
    )


def rows_of_batches() -> dict[str, list[list[int]]]:
    """The users of the batches of 5 of 11 rows, in training and in scoring, that this process has."""
    known = store()
    encoder, one = Encoder(known), np.ones(11, np.int64)
    rows = known.rows(np.arange(1, 12), one, one * 0, one)
    with tempfile.TemporaryDirectory() as folder:
        stored = Stored.write(Path(folder) / "records.bin", [encoder.records(rows)])
        kinds = {"shuffled": shuffled(encoder, stored, size=5, seed=0)(1), "in_order": in_order(encoder, rows, size=5)}
        return {name: [batch["user"].tolist() for batch in batches] for name, batches in kinds.items()}


def standardised() -> Tensor:
    """What becomes of 9 rows of two groups, 1 row in a third, the running statistics beside, and all gradients."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(10, 3, generator=random)
    weight = torch.randn(10, 3, generator=random)
    group = torch.tensor([0, 1, 0, 1, 1, 0, 0, 0, 1, 2])
    out = []
    for groups in (1, 3):
        layer, own = Standardise(groups, 3), processes.part(torch.arange(10))
        given = z[own].requires_grad_()
        result = layer(given, group[own] if groups > 1 else torch.zeros_like(own))
        (result * weight[own]).sum().backward()
        assert given.grad is not None
        out += [processes.joined(result.detach()), layer.mean, layer.variance, processes.joined(given.grad)]
    return torch.cat(out)


def train_users(users: int, room: int) -> None:
    """An epoch with so many users in the table, in no more than `room` bytes beside those that are taken already."""
    more = users - SCHEMA.fields[0].size
    schema = replace(SCHEMA, fields=(replace(SCHEMA.fields[0], size=users), *SCHEMA.fields[1:]))

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        for index in torch.arange(len(ROWS)).split(16):
            batch = labelled(processes.part(index))
            user, others = batch["fields"].split([1, len(schema.fields) - 1], dim=1)
            shifted = {key: value + more for key, value in batch.items() if key.endswith(".fields")}
            yield {**batch, **shifted, "fields": torch.cat([user * (users // 100), others + more], dim=1)}

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmData"].split()[0]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    model = RANKERS["flat_dnn"](schema, width=8)
    fit(
        model,
        batches,
        lambda model, batch: objective(model, batch, masked_bce),
        lambda model: {"score": 0.0},
        steps=5,
        epochs=1,
        learning_rate=0.01,
        monitor="score",
        log=lambda metrics, epoch: None,
    )


@record
def main(job: Path) -> None:
    asked = json.loads(job.read_text())
    with process_group():
        if asked["worlds"]:
            train_worlds(job.parent)
        train_users(asked["users"], asked["room"])


def train_worlds(folder: Path) -> None:
    place, count = processes.place(), processes.count()
    curves, weights = {}, {}
    for name in WORLDS:
        model, curves[name], _ = train(name)
        weights |= {f"{name}.{key}": value for key, value in whole(model).items()}
        for module in model.modules():
            if isinstance(module, FieldEmbedding):
                assert len(module.table.weight) <= -(-module.size // count)
    resumed = {}
    for name, kill_at in (("unbroken", -1), ("resumed", 8)):
        checkpoints = folder / name
        try:
            train("wide_deep", checkpoints=checkpoints, kill_at=kill_at, dropout=0.2)
        except KilledError:
            processes.wait()
        model, _, steps = train("wide_deep", checkpoints=checkpoints, dropout=0.2)
        resumed |= {f"{name}.{key}": value for key, value in whole(model).items()}
    save_file({"standardised": standardised()}, folder / f"standardised-{place}.safetensors")
    write_json(folder / f"told-{place}.json", {"batches": rows_of_batches(), "curves": curves, "steps": steps})
    if place == 0:
        save_file(weights, folder / "weights.safetensors")
        save_file(resumed, folder / "resumed.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
