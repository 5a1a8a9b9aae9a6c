"""SIM: Pi et al., Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate
Prediction, CIKM 2020 (arXiv:2006.05639).

The events that bear on the candidate are searched for in a long history, then weighted as in DIN, and so are the
newest events beside them. Differs from the paper: the soft search takes the inner product of the ranker's own
embeddings, without projections and the auxiliary task that trains these; the exact unit is DIN's in place of
multi-head attention; the short history is DIN's in place of DIEN's, and the two are added up.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Inputs, mlp
from models.schema import Schema
from models.sequences import ActivationUnit, LongAndShort


class SIM(nn.Module):
    """`keep` events of each sequence are found: the newest with the candidate's `category`, or, in a sequence without
    that field, the most alike. The newest `recent` stand beside them. `attention` is the hidden size of the activation
    units."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        keep: int = 50,
        recent: int = 20,
        category: str = "category",
        attention: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        exact = partial(ActivationUnit, hidden=attention)
        search = partial(LongAndShort, keep=keep, recent=recent, category=category, then=exact)
        self.inputs = Inputs(schema, width, dropout=dropout, encoder=search)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
