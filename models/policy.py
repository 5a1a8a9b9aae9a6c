"""A recommender as a policy: Chen et al., Top-K Off-Policy Correction for a REINFORCE Recommender System, WSDM 2019.

π(a | s) is a softmax over items, read off the user's state s. β(a | s), how often whatever policy made the log showed a
in s, is a second softmax with item vectors of its own on the same state, whose gradient stops there (§4.2).

Differs from the paper: s is `models.state`, without a recurrent network; logits are cosines over a temperature.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.schema import Schema
from models.state import ItemVectors, State


class Policy(nn.Module):
    """`temperature` is that of both softmaxes, whose logits are ⟨user, item⟩ of the vectors here."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 32,
        length: int = 20,
        content: int = 0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.state = State(schema, width=width, length=length, content=content)
        self.item_net = nn.Linear(width, width)
        self.logged_user = nn.Linear(width, width)
        self.logged_items = ItemVectors(schema, width=width, content=content)

    def users(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """The states as π and as β compare them with items; divided by the temperature."""
        state = self.state(batch)
        logged = self.logged_user(state.detach())
        return functional.normalize(state) / self.temperature, functional.normalize(logged) / self.temperature

    def item_vectors(self, codes: Int[Tensor, "N F"], content: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Items as π compares them with users."""
        return functional.normalize(self.item_net(self.state.items(codes, content)))

    def logged_item_vectors(self, codes: Int[Tensor, "N F"], content: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Items as β compares them with users."""
        return functional.normalize(self.logged_items(codes, content))


def top_k_factor(log_policy: Tensor, k: int) -> Tensor:
    """λ_K = K (1 − π)^(K−1): what one more unit of log π does to the chance that an item is among K draws, over what it
    does to that it is the one draw (§4.3). K where π is nearly 0, nearly 0 where the item is as good as certain."""
    return k * (-log_policy.exp().clamp(max=1.0)).log1p().mul(k - 1).exp() if k > 1 else torch.ones_like(log_policy)


def correction(log_policy: Tensor, log_logged: Tensor, *, k: int, cap: float) -> Tensor:
    """The weight of −R log π in the loss: min(π / β, cap) · λ_K, without a gradient (§4.3 and §4.4)."""
    ratio = (log_policy - log_logged).detach().exp().clamp(max=cap)
    return ratio * top_k_factor(log_policy.detach(), k)
