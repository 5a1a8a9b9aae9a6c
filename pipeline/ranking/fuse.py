"""T8: one number from several task scores, a product of powers, Π_t p_t^w_t, with weights per domain.

Recall has a say: 1 / the candidate's place in the merge is fused like one more task, so that what the routes know and
the ranker's features do not is not thrown away. The weights are tuned for a stated objective: NDCG at the length of
the final list, over requests of the validation slice none of which the ranker was trained on. A domain leaves the
weights of all domains for its own only where its own are better by more than the noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.evaluation.metrics import ndcg_at

Z = 1.96
ENOUGH_REQUESTS = 100
SMALLEST = 1e-7


def fuse(probabilities: np.ndarray, domain: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Π_t p_t^w_t of (N, T) probabilities, with the (P, T) weights of each row's domain: (N,) in (0, 1]."""
    logs = np.log(np.clip(probabilities, SMALLEST, 1.0))
    fused: np.ndarray = np.exp((logs * weights[domain]).sum(axis=1))
    return fused


def with_recall(probabilities: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The task scores (N, T) and, as the last column, 1 / place in the merge: (N, T + 1)."""
    return np.concatenate([probabilities, 1 / position[:, None]], axis=1)


def ndcg(
    scores: np.ndarray, request: np.ndarray, positive: np.ndarray, positives: np.ndarray, *, length: int
) -> np.ndarray:
    """NDCG@length of each of R requests when their candidates are ordered by score; ties count against a positive.

    `scores`, `request` (sorted) and `positive` are (N,) over the candidates, `positives` (R,) counts all that the
    user engaged with, also what is not among the candidates.
    """
    start = np.searchsorted(request, np.arange(len(positives) + 1))
    padded = np.full((len(positives), int(np.diff(start).max(initial=0))), -np.inf)
    padded[request, np.arange(len(request)) - start[request]] = scores
    owner = request[positive]
    rank = (padded[owner] >= scores[positive][:, None]).sum(axis=1)
    missing = np.repeat(np.arange(len(positives)), positives - np.bincount(owner, minlength=len(positives)))
    ranks = np.concatenate([rank, np.full(len(missing), np.inf)])
    return ndcg_at(ranks, np.concatenate([owner, missing]), len(positives), length)


def tune(
    probabilities: np.ndarray,
    domain: np.ndarray,
    request: np.ndarray,
    positive: np.ndarray,
    positives: np.ndarray,
    *,
    domains: int,
    length: int,
    trials: int,
    seed: int,
) -> np.ndarray:
    """Fusion weights (P, T) for candidates with (N, T) probabilities; `domain` (R,) is each request's."""
    logs = np.log(np.clip(probabilities, SMALLEST, 1.0))
    tasks = logs.shape[1]

    def gains(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        member = chosen[request]
        number = np.cumsum(chosen) - 1
        scores = logs[member] @ weights
        return ndcg(scores, number[request[member]], positive[member], positives[chosen], length=length)

    everyone = np.ones(len(domain), dtype=bool)
    singles = [np.eye(tasks)[task] for task in range(tasks)]
    shared = _search(lambda weights: gains(weights, everyone).mean(), [np.ones(tasks), *singles], trials, seed)
    result = np.tile(shared, (domains, 1))
    for number in range(domains):
        chosen = domain == number
        if chosen.sum() < ENOUGH_REQUESTS:
            continue
        own = _search(lambda weights, chosen=chosen: gains(weights, chosen).mean(), [shared], trials, seed)  # type: ignore[misc]
        better = gains(own, chosen) - gains(shared, chosen)
        if better.mean() > Z * better.std(ddof=1) / np.sqrt(len(better)):
            result[number] = own
    return result


def _search(objective: Callable[[np.ndarray], float], starts: list[np.ndarray], trials: int, seed: int) -> np.ndarray:
    """The weights in [0, 1]^T with the highest objective among the starts and `trials` of Optuna's TPE sampler."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    names = [str(task) for task in range(len(starts[0]))]
    for start in starts:
        study.enqueue_trial(dict(zip(names, start.tolist(), strict=True)))

    def trial_value(trial: optuna.Trial) -> float:
        return float(objective(np.array([trial.suggest_float(name, 0.0, 1.0) for name in names])))

    study.optimize(trial_value, n_trials=trials + len(starts))
    return np.array([study.best_params[name] for name in names])
