"""L6: how uncertain the ranker is about a row, and Thompson sampling: ranking by a draw from what the truth may be.

The ranker's logit is given a residual βᵀφ(x) on its numbers x, a Gaussian process by random Fourier features,
φ(x) = √(2/H) cos(xW + b), whose products are near exp(−|x − y|² / 2ℓ²) (Rahimi & Recht, "Random Features for
Large-Scale Kernel Machines", NeurIPS 2007). Laplace's approximation of the posterior at the ranker's own probabilities
p̂ is β ~ N(0, Λ⁻¹) with Λ = τI + Σ p̂(1 − p̂) φφᵀ over the training rows, one Λ a task (the last layer of SNGP: Liu et
al., "Simple and Principled Uncertainty Estimation", NeurIPS 2020, eq. 8 and 9). The mean stays the ranker's; the
residual only says how far the truth may be from it: little where there were many rows like this one, 1/√τ where none.

Numbers are standardised on the training rows and clipped to ±5. A number that is missing or infinite is the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

CLIP = 5.0
CHUNK = 1 << 14


@dataclass(frozen=True)
class Posterior:
    """H random features of M numbers, and what is known of the weights β of T tasks' residuals.

    `W` (M, H), `b` (H,): the features'. `mean`, `std` (M,): the numbers'; `std` is infinite where all were the same.
    `factors` (T, H, H): β = factor @ z with z ~ N(0, I), the inverse transposed Cholesky factor of Λ.
    """

    W: Array
    b: Array
    mean: Array
    std: Array
    factors: Array


def fit(
    numbers: npt.NDArray[np.floating],
    probabilities: npt.NDArray[np.floating],
    *,
    features: int = 128,
    length_scale: float | None = None,
    ridge: float = 1.0,
    seed: int,
) -> Posterior:
    """The posterior after the training rows' `numbers` (N, M) and the ranker's `probabilities` (N, T) of them.

    A NaN probability is a row that says nothing of that task, such as one whose label is unknown. `ridge` is τ, so that
    a residual's deviation is 1 logit before any row is seen. `length_scale` is ℓ, in standard deviations; by default
    √M of the M numbers that vary. Two rows drawn at random are √2M apart, and so correlate by 1/e: much shorter, and
    every row is news, since no other is near; much longer, and none is, since all are alike.
    """
    mean, std = np.array([_moments(column) for column in numbers.T], np.float32).reshape(-1, 2).T
    scale = length_scale or math.sqrt(max(1, np.isfinite(std).sum()))
    random = np.random.default_rng(seed)
    W = (random.standard_normal((len(mean), features)) / scale).astype(np.float32)
    b = random.uniform(0, 2 * math.pi, features).astype(np.float32)
    precision = np.tile(ridge * np.eye(features), (probabilities.shape[1], 1, 1))
    for begin in range(0, len(numbers), CHUNK):
        seen = _features(numbers[begin : begin + CHUNK], mean, std, W.astype(np.float64), b)
        chance = probabilities[begin : begin + CHUNK].astype(np.float64)
        for task, curvature in enumerate(np.nan_to_num(chance * (1 - chance)).T):
            precision[task] += (seen * curvature[:, None]).T @ seen
    factors = np.linalg.inv(np.linalg.cholesky(precision)).swapaxes(1, 2)
    return Posterior(W, b, mean.copy(), std.copy(), np.ascontiguousarray(factors, np.float32))


def shift(
    posterior: Posterior,
    numbers: npt.NDArray[np.floating],
    request: npt.NDArray[np.integer],
    generator: np.random.Generator,
) -> Array:
    """What to add to the logits of rows with `numbers` (B, M) to rank them by a draw from the posterior: (B, T).

    β is drawn once for each `request` (B,), so that its candidates move together, as one belief about the world would
    have them: like ones alike.
    """
    names, owner = np.unique(request, return_inverse=True)
    tasks, width, _ = posterior.factors.shape
    drawn = generator.standard_normal((tasks, len(names), width), np.float32) @ posterior.factors.swapaxes(1, 2)
    shifts: Array = np.einsum("bh,tbh->bt", _of(posterior, numbers), drawn[:, owner])
    return shifts


def deviation(posterior: Posterior, numbers: npt.NDArray[np.floating]) -> Array:
    """The standard deviation √(φᵀΛ⁻¹φ) of the residual logit of rows with `numbers` (B, M): (B, T)."""
    lengths: Array = np.linalg.norm(_of(posterior, numbers) @ posterior.factors, axis=2).T
    return lengths


def save(posterior: Posterior, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(vars(posterior), path)


def load(path: Path) -> Posterior:
    from safetensors.numpy import load_file

    return Posterior(**load_file(path))


def _moments(column: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Mean and standard deviation of the finite values; a deviation of ∞ where they are all the same."""
    known = column[np.isfinite(column)].astype(np.float64)
    if len(known) == 0 or np.ptp(known) == 0:
        return float(known[:1].sum()), math.inf
    return float(known.mean()), float(known.std())


def _of(posterior: Posterior, numbers: npt.NDArray[np.floating]) -> Array:
    return _features(numbers, posterior.mean, posterior.std, posterior.W, posterior.b)


def _features(
    numbers: npt.NDArray[np.floating], mean: Array, std: Array, W: npt.NDArray[np.floating], b: Array
) -> npt.NDArray[np.floating]:
    """φ (B, H) of `numbers` (B, M), as precise as `W`."""
    known = np.where(np.isfinite(numbers), numbers, mean)
    standard = ((known - mean) / std).clip(-CLIP, CLIP).astype(W.dtype)
    waves: npt.NDArray[np.floating] = np.cos(standard @ W + b)
    return math.sqrt(2 / len(b)) * waves
