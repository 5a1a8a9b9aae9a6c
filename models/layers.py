"""What nearly all models share: embedding a batch, plain networks, banks of small networks, and mixing or picking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models import processes, sharding
from models.encodings import Encodings
from models.grouped import grouped_linear, grouping, ungrouped
from models.schema import Role, Schema
from models.sequences import Factory, HardSearch, LongAndShort, Pooling, of_each, segment_sum

CLIP = 5.0


class FieldEmbedding(nn.Module):
    """One table for all fields; a code comes with its field's offset already added. Of several processes each has some
    of the table's `size` rows (`models.sharding`)."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.size = schema.table_size
        self.table = sharding.embedding(self.size, width, std=0.01)

    def forward(self, *codes: Int[Tensor, "_ _"]) -> list[Float[Tensor, "_ _ D"]]:
        """Embeddings of several tensors of codes at once: what costs time is the gradient of the whole table, which
        each look-up would make anew."""
        vectors = sharding.vectors(self.table, self.size, torch.cat([part.flatten() for part in codes]))
        parts = vectors.split([part.numel() for part in codes])
        return [vector.view(*part.shape, vectors.shape[1]) for vector, part in zip(parts, codes, strict=True)]


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights, with the rows of its tables that other processes hold, in the first; without, in others."""
    weights = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, FieldEmbedding) and processes.count() > 1:
            table = sharding.whole(module.table.weight.detach(), module.size)
            weights |= {} if table is None else {f"{name}.table.weight": table}
    return weights


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns, in all processes."""
    tables = [module for module in model.modules() if isinstance(module, FieldEmbedding)]
    elsewhere = sum((one.size - len(one.table.weight)) * one.table.embedding_dim for one in tables)
    return elsewhere + sum(parameter.numel() for parameter in model.parameters())


class Numbers(nn.Module):
    """Numeric features in standard deviations from the training mean, at most `CLIP` of them."""

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.columns = list(range(len(schema.numbers))) if columns is None else list(columns)
        self.place = as_index(self.columns)
        chosen = [schema.numbers[column] for column in self.columns]
        self.register_buffer("mean", torch.tensor([number.mean for number in chosen]))
        self.register_buffer("std", torch.tensor([number.std or 1.0 for number in chosen]))

    def forward(self, numbers: Float[Tensor, "B M"]) -> Float[Tensor, "B chosen"]:
        return ((numbers[:, self.place] - self.mean) / self.std).clamp(-CLIP, CLIP)


def as_index(columns: Sequence[int]) -> slice | list[int]:
    """Columns as what picks them: those that stand next to each other need no copy."""
    first = columns[0] if columns else 0
    if list(columns) == list(range(first, first + len(columns))):
        return slice(first, first + len(columns))
    return list(columns)


class Standardise(nn.Module):
    """(z − E) / √(Var + ε), by the batch's statistics of each group of rows in training, by running ones when scoring.

    The batch is that of all processes. A group with fewer than two rows in a batch uses its running statistics, and
    leaves them, in training too.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, groups: int, width: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(groups, width))
        self.register_buffer("variance", torch.ones(groups, width))

    def forward(self, z: Float[Tensor, "B D"], group: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        if len(self.mean) == 1 and self.training and processes.count() > 1:
            return self._of_all(z)
        if len(self.mean) == 1:
            measured, running = self.training and len(z) > 1, (self.mean[0], self.variance[0])
            return functional.batch_norm(z, *running, None, None, measured, self.momentum, self.epsilon)
        mean, scale = self.statistics(z, group)
        return (z - mean.index_select(0, group)) * scale.index_select(0, group)

    def statistics(
        self, z: Float[Tensor, "B D"], group: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "groups D"], Float[Tensor, "groups D"]]:
        """Of each group E and 1 / √(Var + ε)."""
        mean, variance = self._measure(z, group) if self.training else (self.mean, self.variance)
        return mean, torch.rsqrt(variance + self.epsilon)

    def _measure(
        self, z: Float[Tensor, "B D"], group: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "groups D"], Float[Tensor, "groups D"]]:
        groups = len(self.mean)
        summed = torch.cat(
            [segment_sum(torch.ones_like(z[:, :1]), group, groups), segment_sum(z, group, groups)], dim=1
        )
        count, mean = processes.total(summed).split([1, z.shape[1]], dim=1)
        mean = mean / count.clamp(min=1)
        squares = segment_sum((z - mean.index_select(0, group)).square(), group, groups)
        variance = processes.total(squares) / count.clamp(min=1)
        return self._remember(count, mean, variance)

    def _of_all(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """One group, whose rows other processes have too."""
        count, mean, squares = processes.moments(z.detach())
        mean, variance = self._remember(count, mean[None], squares[None] / count.clamp(min=1))
        deviation = torch.rsqrt(variance[0] + self.epsilon)
        return _Standardised.apply(z, mean[0], deviation, count)  # type: ignore[no-any-return,no-untyped-call]

    def _remember(self, count: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Move the running statistics of groups of so many rows; the mean and variance to be used."""
        enough = count > 1
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.mean.lerp_(torch.where(enough, mean, self.mean), self.momentum)
            self.variance.lerp_(torch.where(enough, unbiased, self.variance), self.momentum)
        return torch.where(enough, mean, self.mean), torch.where(enough, variance, self.variance)


class _Standardised(torch.autograd.Function):
    """Rows by the mean and the deviation of `count` rows, these among them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: Tensor, deviation: Tensor, count: Tensor) -> Tensor:
        out = (z - mean).mul_(deviation)
        ctx.save_for_backward(out, deviation, count)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        out, deviation, count = ctx.saved_tensors
        sums = processes.total(torch.stack([gradient.sum(0), (gradient * out).sum(0)]))
        along = torch.where(count > 1, sums / count, 0.0)
        return torch.addcmul(gradient - along[0], out, along[1], value=-1).mul_(deviation), None, None, None


class Histories(nn.Module):
    """Every behaviour sequence of the schema as one vector a row, next to each other.

    `encoder(width, sequence)` makes the encoder of a sequence; `models.sequences` says what an encoder is.
    """

    def __init__(self, schema: Schema, width: int, encoder: Factory = Pooling) -> None:
        super().__init__()
        self.names = [sequence.name for sequence in schema.sequences]
        self.encoders = nn.ModuleList(encoder(width * len(seq.fields), seq) for seq in schema.sequences)
        self.width = width * sum(len(sequence.fields) for sequence in schema.sequences)

    def narrowed(self, batch: dict[str, Tensor], candidates: Sequence[Int[Tensor, "B _"]]) -> dict[str, Tensor]:
        """The batch with no more events than the encoders want, if they can tell by their codes; `candidates` are the
        codes of the candidate as an event of each sequence."""
        for name, encoder, candidate in zip(self.names, self.encoders, candidates, strict=True):
            keys = [f"{name}.fields", f"{name}.gap", f"{name}.row"]
            if "asker" in batch and not hasattr(encoder, "shared"):
                event, row = of_each(batch[keys[2]], batch["asker"])
                batch = {**batch, keys[0]: batch[keys[0]][event], keys[1]: batch[keys[1]][event], keys[2]: row}
            if isinstance(encoder, HardSearch | LongAndShort):
                found = encoder.find(candidate, *(batch[key] for key in keys))
                batch = {**batch, **dict(zip(keys, found, strict=True))}
        return batch

    def codes(self, batch: dict[str, Tensor]) -> list[Int[Tensor, "_ _"]]:
        """The events' codes, to be embedded."""
        return [batch[f"{name}.fields"] for name in self.names]

    def forward(
        self,
        batch: dict[str, Tensor],
        queries: Sequence[Float[Tensor, "B _"]],
        events: Sequence[Float[Tensor, "_ _ D"]],
    ) -> Float[Tensor, "B width"]:
        """One query and the embedded codes for every sequence."""
        encoded = []
        for encoder, own in zip(self.encoders, self._given(batch, queries, events), strict=True):
            shared = "asker" in batch and hasattr(encoder, "shared")
            encoded.append(encoder.shared(*own, batch["asker"]) if shared else encoder(*own))  # type: ignore[operator]
        return torch.cat([batch["numbers"][:, :0], *encoded], dim=1)

    def with_loss(
        self,
        batch: dict[str, Tensor],
        queries: Sequence[Float[Tensor, "B _"]],
        events: Sequence[Float[Tensor, "_ _ D"]],
    ) -> tuple[Float[Tensor, "B width"], Float[Tensor, ""]]:
        """The same, and the sum of the encoders' own losses, of encoders that have one (`models.recurrent`)."""
        encoded = [batch["numbers"][:, :0]]
        total = encoded[0].sum()
        for encoder, own in zip(self.encoders, self._given(batch, queries, events), strict=True):
            vector, loss = encoder.with_loss(*own)  # type: ignore[operator]
            encoded.append(vector)
            total = total + loss
        return torch.cat(encoded, dim=1), total

    def _given(
        self, batch: dict[str, Tensor], queries: Sequence[Tensor], events: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What each encoder is called with."""
        for name, query, event in zip(self.names, queries, events, strict=True):
            yield query, event.flatten(1), batch[f"{name}.gap"], batch[f"{name}.row"]


class Inputs(nn.Module):
    """A batch as one vector a row: embedded fields ‖ histories ‖ encodings ‖ numbers, standardised (within each domain
    if `by_domain`, else over all rows), with dropout on all of it.

    Embeddings begin small, so that a code seldom seen says little. Without standardising them a network takes many
    epochs to find out that products of two of them, such as taste times topic, say anything at all.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        *,
        dropout: float = 0.0,
        encoder: Factory = Pooling,
        by_domain: bool = False,
    ) -> None:
        super().__init__()
        self.by_domain = by_domain
        places = [[schema.position(name) for name in sequence.fields] for sequence in schema.sequences]
        self.candidate = [as_index(columns) for columns in places]
        self.embed = FieldEmbedding(schema, width)
        self.histories = Histories(schema, width, encoder)
        self.encodings = Encodings(schema, width)
        self.numbers = Numbers(schema)
        self.dropout = nn.Dropout(dropout)
        self.width = width * len(schema.fields) + self.histories.width + self.encodings.width + len(schema.numbers)
        self.standardise = Standardise(len(schema.domains) if by_domain else 1, self.width)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B width"]:
        batch, fields, queries, events = self._embedded(batch)
        return self._joined(batch, fields, self.histories(batch, queries, events))

    def with_loss(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "B width"], Float[Tensor, ""]]:
        """The same, and the sum of the histories' encoders' own losses."""
        batch, fields, queries, events = self._embedded(batch)
        histories, loss = self.histories.with_loss(batch, queries, events)
        return self._joined(batch, fields, histories), loss

    def _embedded(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, list[Tensor], list[Tensor]]:
        """The batch with what is left of its events, the fields, and for every sequence the candidate as an event and
        the events."""
        batch = self.histories.narrowed(batch, [batch["fields"][:, columns] for columns in self.candidate])
        fields, *events = self.embed(batch["fields"], *self.histories.codes(batch))
        return batch, fields, [fields[:, columns].flatten(1) for columns in self.candidate], events

    def _joined(self, batch: dict[str, Tensor], fields: Tensor, histories: Tensor) -> Tensor:
        x = torch.cat([fields.flatten(1), histories, self.encodings(batch), self.numbers(batch["numbers"])], dim=1)
        group = batch["domain"] if self.by_domain else torch.zeros_like(batch["domain"])
        return self.dropout(self.standardise(x, group))  # type: ignore[no-any-return]


def field_columns(schema: Schema, width: int, *names: str) -> list[int]:
    """Where the fields with these names lie in the vector that `Inputs` of the same width gives."""
    return [i * width + k for i, field in enumerate(schema.fields) if field.name in names for k in range(width)]


class OtherColumns(nn.Module):
    """All of `width` columns but some that stand next to each other, if any do: two slices, which cost less to join,
    there and back, than so many columns to pick."""

    def __init__(self, without: Sequence[int], width: int) -> None:
        super().__init__()
        self.begin, self.end = (without[0], without[-1] + 1) if without else (0, 0)
        self.width = width - len(without)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B width"]:
        return torch.cat([x[:, : self.begin], x[:, self.end :]], dim=1)


def vector_roles(schema: Schema) -> tuple[Role, ...]:
    """Whose each of the `FieldVectors` is: a field's, a history's, which is its user's, an encoding's, or a role's
    numbers'."""
    of_histories: list[Role] = ["user" for sequence in schema.sequences for _ in sequence.fields]
    of_encodings = map(schema.encoding_role, schema.encodings)
    with_numbers = dict.fromkeys(number.role for number in schema.numbers)
    return (*(field.role for field in schema.fields), *of_histories, *of_encodings, *with_numbers)


def embedded_vectors(schema: Schema) -> int:
    """How many of the `FieldVectors` are embeddings, which `Inputs` has before the numbers."""
    histories = sum(len(sequence.fields) for sequence in schema.sequences)
    return len(schema.fields) + histories + len(schema.encodings)


class FieldVectors(nn.Module):
    """What interactions pair: N vectors of D numbers a row, read off the vector that `Inputs` of the same width gives.

    One for each field, one for each field of each history, one for each encoding, and one for each role that has
    numbers: a linear map of these. `roles` says whose each is.
    """

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        with_numbers = dict.fromkeys(number.role for number in schema.numbers)
        self.roles = vector_roles(schema)
        self.width = width
        self.embedded = width * embedded_vectors(schema)
        of_roles = [schema.number_positions(role) for role in with_numbers]
        self.columns = [as_index(columns) for columns in of_roles]
        self.maps = nn.ModuleList(nn.Linear(len(columns), width, bias=False) for columns in of_roles)

    def __len__(self) -> int:
        return len(self.roles)

    def forward(self, x: Float[Tensor, "B inputs"]) -> Float[Tensor, "B N D"]:
        embedded, numbers = x.split([self.embedded, x.shape[1] - self.embedded], dim=1)
        mapped = [layer(numbers[:, columns]) for layer, columns in zip(self.maps, self.columns, strict=True)]
        return torch.cat([embedded, *mapped], dim=1).view(len(x), len(self), self.width)


class Tables(nn.Module):
    """Several tables of embeddings that lie side by side in one, so that a code is looked up once for all of them.

    Reads the row as each table has it off the vector that `Inputs` of the width Σ `widths` gives: its part of all
    embeddings, and the numbers. `sizes` says how long these vectors are.
    """

    def __init__(self, schema: Schema, widths: Sequence[int]) -> None:
        super().__init__()
        self.vectors = embedded_vectors(schema)
        self.widths = list(widths)
        self.sizes = [self.vectors * width + len(schema.numbers) for width in widths]

    def forward(self, x: Float[Tensor, "B inputs"]) -> list[Float[Tensor, "B _"]]:
        embedded = x[:, : self.vectors * sum(self.widths)].unflatten(1, (self.vectors, -1))
        numbers = x[:, self.vectors * sum(self.widths) :]
        return [torch.cat([part.flatten(1), numbers], dim=1) for part in embedded.split(self.widths, dim=2)]


def linear(layer: nn.Linear, *parts: Float[Tensor, "_ _"]) -> Float[Tensor, "B out"]:
    """What a layer makes of parts that lie side by side, without joining them; a part of one row is the same for
    all."""
    weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    out = functional.linear(parts[0], weights[0], layer.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out + functional.linear(part, weight)
    return out


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers from `sizes[0]` to `sizes[-1]` with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class BankLinear(nn.Module):
    """k linear layers in stacked weights."""

    def __init__(self, k: int, into: int, out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(into)
        self.weight = nn.Parameter(torch.empty(k, into, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(k, out).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B k out"]:
        """From one input for all k (B, in) or one for each (B, k, in)."""
        k, into, out = self.weight.shape
        if x.ndim == 2:
            weight = self.weight.transpose(0, 1).reshape(into, k * out)
            return torch.addmm(self.bias.view(-1), x, weight).view(len(x), k, out)
        each = torch.baddbmm(self.bias[:, None], x.transpose(0, 1).contiguous(), self.weight)
        return each.transpose(0, 1).contiguous()  # torch is slow at rows that lie apart

    def of_groups(self, x: Float[Tensor, "B into"], count: Int[Tensor, " k"]) -> Float[Tensor, "B out"]:
        """From rows that lie group after group, each through its own group's layer."""
        return grouped_linear(x, self.weight, self.bias, count)  # type: ignore[no-any-return]


class Bank(nn.Module):
    """k small networks of the same shape, such as experts, task towers or domain towers, in stacked weights.

    ReLU stands between the layers, and after the last one if `activate_last`.
    """

    def __init__(self, k: int, *sizes: int, activate_last: bool = False) -> None:
        super().__init__()
        self.k = k
        self.layers = nn.ModuleList(BankLinear(k, into, out) for into, out in pairwise(sizes))
        self.activated = len(self.layers) if activate_last else len(self.layers) - 1

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B k out"]:
        """From one input for all k (B, in) or one for each (B, k, in)."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < self.activated:
                x = x.relu()
        return x

    def own(self, x: Float[Tensor, "B into"], group: Int[Tensor, " B"]) -> Float[Tensor, "B out"]:
        """Each row through the network of its own group alone: what `pick` would leave of all of them, at the cost of
        one."""
        order, count = grouping(group, self.k)
        x = x.index_select(0, order)
        for i, layer in enumerate(self.layers):
            x = layer.of_groups(x, count)  # type: ignore[operator]
            if i < self.activated:
                x = x.relu()
        return ungrouped(x, order)


def mix(gates: Float[Tensor, "B G K"], experts: Float[Tensor, "B K D"]) -> Float[Tensor, "B G D"]:
    """For each of G gates, the sum of the experts weighted by it."""
    return torch.bmm(gates, experts)


def pick(per_domain: Float[Tensor, "B P ..."], domain: Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """Each row's entry for its own domain."""
    return per_domain[torch.arange(len(domain), device=domain.device), domain]
