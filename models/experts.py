"""Experts: in groups, one for each task and one that all tasks share; of a table of their own; with an interaction."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.crosses import Cross, CrossNetwork
from models.gates import SoftmaxGate
from models.interactions import CIN, FMPairs, InnerProducts
from models.layers import Bank, Inputs, Tables, mix, mlp
from models.schema import Schema


def mix_own_and_shared(
    gates: Float[Tensor, "B T K"], own: Float[Tensor, "B T M D"], shared: Float[Tensor, "B S D"]
) -> Float[Tensor, "B T D"]:
    """For each task, the sum of its own experts and the shared ones weighted by its gate; K = M + S."""
    of_own, of_shared = gates.split([own.shape[2], shared.shape[1]], dim=2)
    return torch.einsum("btm,btmd->btd", of_own, own) + mix(of_shared, shared)


def mix_reaching(
    gates: Float[Tensor, "B T K"], experts: Float[Tensor, "B K D"], reached: Bool[Tensor, "T K"]
) -> Float[Tensor, "B T D"]:
    """For each task, the sum of all experts weighted by its gate; the gradient goes on to those `reached` alone."""
    return mix(gates * reached, experts) + mix(gates * ~reached, experts.detach())


class Extraction(nn.Module):
    """A level of PLE (Tang et al., RecSys 2020, §4): `own` experts for each task and `shared` ones for all.

    A gate for each task mixes its own and the shared experts; unless this is the `top`, one more mixes them all for
    the shared experts of the next level.
    """

    def __init__(
        self, into: int, tasks: int, own: int, shared: int, hidden: tuple[int, ...], gate_dropout: float, *, top: bool
    ) -> None:
        super().__init__()
        self.groups = (tasks, own)
        self.owner = [task for task in range(tasks) for _ in range(own)] + [tasks] * shared
        self.experts = Bank(len(self.owner), into, *hidden, activate_last=True)
        self.gates = SoftmaxGate(into, tasks, own + shared, gate_dropout)
        self.shared_gate = None if top else SoftmaxGate(into, 1, len(self.owner), gate_dropout)

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B G D"]:
        """From one input for all (B, into), or one for each task and, as the last, for the shared experts (B, T + 1,
        into), to one output for each task and, below the top, for the shared experts."""
        for_expert, for_task, for_shared = (x, x, x) if x.ndim == 2 else (x[:, self.owner], x[:, :-1], x[:, -1])
        experts = self.experts(for_expert)
        own, shared = experts.tensor_split([math.prod(self.groups)], dim=1)
        out = mix_own_and_shared(self.gates(for_task), own.unflatten(1, self.groups), shared)
        if self.shared_gate is None:
            return out
        return torch.cat([out, mix(self.shared_gate(for_shared), experts)], dim=1)


def extraction(
    levels: int, into: int, tasks: int, own: int, shared: int, hidden: tuple[int, ...], gate_dropout: float
) -> nn.Sequential:
    """`levels` of extraction on top of each other: from (B, into) to one output for each task (B, T, D), and without a
    level to what came in."""
    sizes = (into, *[hidden[-1]] * (levels - 1))[:levels]
    return nn.Sequential(
        *(
            Extraction(size, tasks, own, shared, hidden, gate_dropout, top=level == levels)
            for level, size in enumerate(sizes, start=1)
        )
    )


class TableExperts(nn.Module):
    """A table of embeddings for each label and one they share, and for each table `experts` that see no other (Su et
    al., STEM, AAAI 2024).

    `reached` (T, K) tells which experts see the label's own table or the shared one.
    """

    reached: Tensor

    def __init__(self, schema: Schema, width: int, experts: int, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        tasks = len(schema.labels)
        self.each = experts
        self.inputs = Inputs(schema, (tasks + 1) * width, dropout=dropout)
        self.tables = Tables(schema, [width] * (tasks + 1))
        self.told = 2 * self.tables.sizes[0]
        self.experts = Bank((tasks + 1) * experts, self.tables.sizes[0], *hidden, activate_last=True)
        own, shared = torch.eye(tasks, dtype=torch.bool), torch.ones(tasks, 1, dtype=torch.bool)
        reached = torch.cat([own, shared], dim=1).repeat_interleave(experts, dim=1)
        self.register_buffer("reached", reached, persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "B T told"], Float[Tensor, "B K D"]]:
        """What each label's gate is told, e_t ‖ e_shared, and all experts, table by table, the shared one's last."""
        vectors = torch.stack(self.tables(self.inputs(batch)), dim=1)
        own, shared = vectors[:, :-1], vectors[:, -1:]
        told = torch.cat([own, shared.expand_as(own)], dim=2)
        return told, self.experts(vectors.repeat_interleave(self.each, dim=1))


class InteractingExpert(nn.Module):
    """What a table's vectors say: they, their interaction and the numbers, through layers `hidden` with ReLU."""

    def __init__(self, interaction: str, vectors: int, width: int, numbers: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        flat = vectors * width
        made: dict[str, nn.Module] = {
            "fm": FMPairs(width),
            "ipnn": InnerProducts(vectors),
            "cin": CIN(vectors, (16, 16)),
            "dcnv2": nn.Sequential(nn.Flatten(), CrossNetwork(Cross(nn.Linear(flat, flat)) for _ in range(2))),
        }
        if interaction not in ("none", *made):
            raise ValueError(f"interaction {interaction!r} is unknown; it is one of none, {', '.join(made)}")
        self.interaction = made.get(interaction)
        extra = 0 if self.interaction is None else getattr(self.interaction, "width", flat)
        self.net = nn.Sequential(mlp(flat + extra + numbers, *hidden), nn.ReLU())

    def forward(self, vectors: Float[Tensor, "B N D"], numbers: Float[Tensor, "B M"]) -> Float[Tensor, "B out"]:
        crossed = [] if self.interaction is None else [self.interaction(vectors)]
        return self.net(torch.cat([vectors.flatten(1), *crossed, numbers], dim=1))  # type: ignore[no-any-return]
