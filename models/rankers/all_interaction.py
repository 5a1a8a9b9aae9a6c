"""All-interaction: every vector meets a few mixtures of all of them, O(N) products where IPNN has O(N²).

The N vectors are linearly compressed to a few along the axis of vectors; the N times few inner products go to a network
with the input. There is no paper of it: it is IPNN (Qu et al., ICDM 2016) with a compression before the products.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.interactions import CrossedInputs
from models.layers import mlp, vector_roles
from models.schema import Schema


class MixtureProducts(nn.Module):
    """⟨v_i, Σ_j W_{kj} v_j⟩ of each of N vectors with each mixture k of `mixtures`."""

    def __init__(self, vectors: int, mixtures: int) -> None:
        super().__init__()
        self.width = vectors * mixtures
        self.mix = nn.Linear(vectors, mixtures, bias=False)

    def forward(self, vectors: Float[Tensor, "B N D"]) -> Float[Tensor, "B width"]:
        mixed: Tensor = self.mix(vectors.mT)
        return (vectors @ mixed).flatten(1)


class AllInteraction(nn.Module):
    """Vectors of `width` numbers, `mixtures` of them, and layers `hidden` on the input and the products."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        mixtures: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        products = MixtureProducts(len(vector_roles(schema)), mixtures)
        self.inputs = CrossedInputs(schema, width, products, dropout=dropout)
        self.net = mlp(self.inputs.width, *hidden, len(schema.labels))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.net(self.inputs(batch))  # type: ignore[no-any-return]
