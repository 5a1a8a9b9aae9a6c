"""FTRL-Proximal: McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


@runtime_checkable
class LearntByFTRL(Protocol):
    """A model some of whose parameters FTRL-Proximal is to train."""

    def ftrl_parameters(self) -> list[nn.Parameter]: ...


class FTRL(Optimizer):
    """For every coordinate, with gradients g_1 … g_t, n = Σ g², η = α / (β + √n) and z = Σ (g_s − σ_s w_s):

    w = 0 where |z| ≤ λ₁, else −(z − sgn(z) λ₁) / (1/η + λ₂), and σ_s = (√n_s − √n_{s−1}) / α.

    A coordinate without a gradient stays as it is, so that a step moves only the codes that its batch holds. The paper
    takes gradients one example at a time, with β = 1 and λ₁ of about 1; a mean over B rows has gradients B times
    smaller, for which β, λ₁ and λ₂ are to be divided by B: hence the defaults, for B = 512.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        alpha: float = 0.1,
        beta: float = 1 / 512,
        l1: float = 1 / 512,
        l2: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, w.grad.float(), group["alpha"], group["beta"], group["l1"], group["l2"])

    def _update(self, w: Tensor, g: Tensor, alpha: float, beta: float, l1: float, l2: float) -> None:
        state = self.state[w]
        if not state:
            state["z"], state["n"] = torch.zeros_like(g), torch.zeros_like(g)
        z, n = state["z"], state["n"]
        sigma = ((n + g.square()).sqrt() - n.sqrt()) / alpha
        z += g - sigma * w
        n += g.square()
        solution = -functional.softshrink(z, l1) / ((beta + n.sqrt()) / alpha + l2)
        w.copy_(torch.where(g == 0, w, solution))
