"""What steps a model's parameters: each kind has an optimiser of its own, and all share one clipped gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import processes
from models.ftrl import FTRL, LearntByFTRL
from models.layers import FieldEmbedding
from models.rowwise import RowAdagrad, RowWise
from pipeline.ranking import compiled_adamw

TableOptimiser = Literal["adamw", "adagrad"]


class Optimisers:
    """FTRL-Proximal for what a model wants trained by it, which knows no schedule and no decay; row-wise AdamW or, at
    `table_learning_rate`, Adagrad for its other fused tables (`models.rowwise`); AdamW for all else.

    `embedding_decay` is that of embeddings, fused or not, `weight_decay` that of matrices; biases and norms have none.
    Of several processes each steps its own rows of the fused tables, and all of them step everything else alike.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        weight_decay: float,
        embedding_decay: float,
        table_optimiser: TableOptimiser,
        table_learning_rate: float,
    ) -> None:
        by_ftrl = model.ftrl_parameters() if isinstance(model, LearntByFTRL) else []
        others = {id(parameter) for parameter in by_ftrl}
        tables = [module.table for module in model.modules() if isinstance(module, FieldEmbedding)]
        self._sharded = {id(table.weight) for table in tables}
        tables = [table for table in tables if id(table.weight) not in others]
        others |= {id(table.weight) for table in tables}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._parameters = list(model.parameters())
        decays = {"embeddings": embedding_decay, "matrices": weight_decay, "vectors": 0.0}
        self._rowwise: list[RowWise] = []
        if tables and table_optimiser == "adamw":
            self._rowwise.append(compiled_adamw.of_tables(tables, lr=learning_rate, weight_decay=embedding_decay))
        elif tables:
            self._rowwise.append(RowAdagrad(tables, lr=table_learning_rate, weight_decay=embedding_decay))
        adamw = torch.optim.AdamW(_groups(model, others, decays), lr=learning_rate, fused=True)
        self._peaks = [(group, group["lr"]) for one in (adamw, *self._rowwise) for group in one.param_groups]
        self._all: list[Optimizer] = [adamw, *self._rowwise, *([FTRL(by_ftrl)] if by_ftrl else [])]

    def step(self, rate: float, clip: float) -> None:
        """Step by the gradients, shrunk to a norm of at most `clip`, at so large a share of the learning rates."""
        of_tables = [gradient for one in self._rowwise for gradient in one.coalesce()]
        others: list[Tensor] = []
        for parameter in self._parameters:
            if parameter.grad is not None and not parameter.grad.is_sparse:
                (of_tables if id(parameter) in self._sharded else others).append(parameter.grad)
        norm = _total_norm(of_tables, others)
        torch._foreach_mul_([*of_tables, *others], (clip / (norm + 1e-6)).clamp(max=1.0))
        for group, peak in self._peaks:
            group["lr"] = peak * rate
        for optimiser in self._all:
            optimiser.step()

    def flush(self) -> None:
        """Bring the rows of all tables up to date, so that the model can be read as a whole."""
        for one in self._rowwise:
            one.flush()

    def close(self) -> None:
        """The same, and leave the model as it was found."""
        for one in self._rowwise:
            one.release()

    def tensors(self) -> dict[str, Tensor]:
        """All they remember: of each parameter, under its name in the model."""
        return {f"{name}.{what}": value for name, state in self._states() for what, value in state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave."""
        remembered: dict[str, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, _, what = path.rpartition(".")
            remembered.setdefault(name, {})[what] = value
        for name, state in self._states():
            state.update(remembered.get(name, {}))

    def _states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for optimiser in self._all:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    yield self._names[id(parameter)], optimiser.state[parameter]


def _total_norm(sharded: list[Tensor], others: list[Tensor]) -> Tensor:
    """Of the gradients of tables, of which each process has its rows', and of parameters that all of them have."""
    if processes.count() == 1:
        return nn.utils.get_total_norm([*sharded, *others])
    squares = processes.total(nn.utils.get_total_norm(sharded).square())
    return (squares + nn.utils.get_total_norm(others).square()).sqrt()


def _groups(model: nn.Module, others: set[int], decays: dict[str, float]) -> list[dict[str, object]]:
    """AdamW's parameters, without those of `others`: biases and norms do not decay."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"embeddings": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if id(parameter) in others:
            continue
        matrix = parameter.ndim > 1 and not name.endswith("bias")
        groups["embeddings" if id(parameter) in embeddings else "matrices" if matrix else "vectors"].append(parameter)
    return [{"params": members, "weight_decay": decays[kind]} for kind, members in groups.items() if members]
