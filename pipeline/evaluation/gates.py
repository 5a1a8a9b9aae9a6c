"""A4: every stage must beat leaving it out, on held-out positives, or the run says so."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.evaluation.replay import COARSE, EVERYTHING, FINAL, MERGE, WITHOUT_COARSE, Replay, route_stage
from pipeline.evaluation.significance import paired_bootstrap

COMPARISONS = {
    "merge": "the snake merge against the best single route, at equal size",
    "coarse": "coarse → fine against the first of the merge → fine",
    "coarse order": "the coarse order against the recall order",
    "fine": "coarse → fine against the coarse order",
}


def gate_table(replay: Replay, *, resamples: int, seed: int = 0) -> pl.DataFrame:
    """Recall and NDCG with a stage and without it, and the bootstrap interval (over users) of the difference.

    Columns: gate, comparison, metric, k, with, without, difference, low, high, verdict, requests. `k` is the length
    of the final list; the coarse order's recall is taken at the `keep` it is there to choose, the merge's metrics at
    the length of the longest route. The best route is the one that does best on these same requests, which favours it.
    """
    final, keep = replay.final, replay.keep
    length = _equal_size(replay)
    best = max(replay.routes, key=lambda route: float(replay.recall(route_stage(route), length).mean()))
    trials = [
        ("merge", "recall", length, MERGE, route_stage(best)),
        ("merge", "ndcg", length, MERGE, route_stage(best)),
        ("coarse", "recall", final, FINAL, WITHOUT_COARSE),
        ("coarse", "ndcg", final, FINAL, WITHOUT_COARSE),
        ("coarse order", "recall", keep, COARSE, MERGE),
        ("coarse order", "ndcg", final, COARSE, MERGE),
        ("fine", "recall", final, FINAL, COARSE),
        ("fine", "ndcg", final, FINAL, COARSE),
    ]
    users = replay.requests["user"].to_numpy()
    rows = []
    for gate, metric, k, chosen, left_out in trials:
        measure = replay.recall if metric == "recall" else replay.ndcg
        ours, theirs = measure(chosen, k), measure(left_out, k)
        interval = paired_bootstrap(ours - theirs, users, resamples=resamples, seed=seed)
        told = COMPARISONS[gate] + (f" ({best})" if gate == "merge" else "")
        rows.append(
            {
                "gate": gate,
                "comparison": told,
                "metric": metric,
                "k": k,
                "with": float(ours.mean()),
                "without": float(theirs.mean()),
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "verdict": interval.verdict,
                "requests": len(replay),
            }
        )
    return pl.DataFrame(rows)


def cascade_loss(replay: Replay) -> float:
    """What the cascade costs: NDCG, at the final list's length, of fine-ranking the whole merge less the chain's."""
    return float(np.mean(replay.ndcg(EVERYTHING, replay.final) - replay.ndcg(FINAL, replay.final)))


def _equal_size(replay: Replay) -> int:
    longest = replay.candidates["rank"].max()
    merged = replay.ranked["position"].max()
    return min(int(longest), int(merged))  # type: ignore[arg-type]
