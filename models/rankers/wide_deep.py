"""Wide & Deep: Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016 (arXiv:1606.07792).

A linear model of all codes and of chosen crosses of them, and a network on their embeddings, whose logits are added.
FTRL-Proximal with L1 trains the wide part, so that most of its weights are exactly zero, and the run's optimiser the
deep part, AdaGrad in the paper. Differs from it: crosses are hashed; they are of two fields each.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.rankers.lr import LR
from models.schema import Schema

SPREAD = 2_654_435_761


class CrossedFields(nn.Module):
    """A weight for each label and each pair of codes that two fields have together, hashed into `buckets`."""

    def __init__(self, schema: Schema, pair: tuple[str, str], buckets: int) -> None:
        super().__init__()
        self.first, self.second = (schema.position(name) for name in pair)
        self.weights = nn.Embedding(buckets, len(schema.labels))

    def buckets(self, fields: Int[Tensor, "B F"]) -> Int[Tensor, " B"]:
        return (fields[:, self.first] * SPREAD + fields[:, self.second]) % self.weights.num_embeddings

    def forward(self, fields: Int[Tensor, "B F"]) -> Float[Tensor, "B T"]:
        return self.weights(self.buckets(fields))  # type: ignore[no-any-return]


class WideDeep(nn.Module):
    """A network with layers `hidden` beside a linear model that may know `crosses`, pairs of names of fields, each
    hashed into `buckets`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        crosses: tuple[tuple[str, str], ...] = (),
        buckets: int = 1 << 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.wide = LR(schema)
        self.crossed = nn.ModuleList(CrossedFields(schema, pair, buckets) for pair in crosses)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.deep = mlp(self.inputs.width, *hidden, len(schema.labels))
        for parameter in self.ftrl_parameters():
            nn.init.zeros_(parameter)

    def ftrl_parameters(self) -> list[nn.Parameter]:
        return [*self.wide.parameters(), *self.crossed.parameters()]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        logits: Tensor = self.wide(batch) + self.deep(self.inputs(batch))
        for crossed in self.crossed:
            logits = logits + crossed(batch["fields"])
        return logits
