"""ESMM: Ma et al., Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate,
SIGIR 2018 (arXiv:1804.07931).

A label that can only follow another, as a conversion follows a click, scores pCTCVR = pCTR · pCVR. The log has such
labels joint with their condition, over all impressions; so the losses of the logits are ESMM's, and what pCVR is,
nobody says but the product. Differs from the paper: any label may have a condition, that condition one of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import Bank, Inputs
from models.schema import Schema


def both(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The logit of p = σ(a) σ(b), which is −log(1/p − 1) with 1/p = (1 + e^−a)(1 + e^−b).

    It stays in log space, so that it is finite where a and b are, with gradients between 0 and 1.
    """
    return -torch.stack([-a, -b, -a - b]).logsumexp(dim=0)


def longest_chain(condition: dict[str, str]) -> int:
    """How often a condition's condition can be asked for."""
    labels, length = list(condition), 0
    while labels := [condition[label] for label in labels if label in condition]:
        length += 1
        if length > len(condition):
            raise ValueError(f"the path goes in a circle: {condition}")
    return length


class ESMM(nn.Module):
    """A network with layers `hidden` for each label, on embeddings that all share.

    `path` has pairs of a label and the label that is its condition; pairs the schema lacks a label of are left out.
    """

    conditional: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 16,
        hidden: tuple[int, ...] = (128, 64),
        path: tuple[tuple[str, str], ...] = (("long_view", "click"), ("like", "click"), ("convert", "click")),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        labels = schema.labels
        condition = {label: given for label, given in path if label in labels and given in labels}
        self.chain = longest_chain(condition)
        self.condition = [labels.index(condition.get(label, label)) for label in labels]
        self.register_buffer("conditional", torch.tensor([label in condition for label in labels]), persistent=False)
        self.inputs = Inputs(schema, width, dropout=dropout)
        self.networks = Bank(len(labels), self.inputs.width, *hidden, 1)

    def given_condition(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        """Logits of each label where its condition holds, such as pCVR; of one without a condition, its logits. In
        float32, as chances near 1 are to be multiplied."""
        return self.networks(self.inputs(batch)).flatten(1).float()  # type: ignore[no-any-return]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        given = joint = self.given_condition(batch)
        for _ in range(self.chain):
            joint = torch.where(self.conditional, both(given, joint[:, self.condition]), given)
        return joint
