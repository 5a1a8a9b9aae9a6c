"""Why an item was shown, and why another was not: a request's way through the funnel, told from its trace."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.ranking.coarse import rank_within

if TYPE_CHECKING:
    from pipeline.serving.engine import Engine, Trace

HISTORY_SHOWN = 20


def explain(engine: Engine, trace: Trace) -> dict[str, Any]:
    """The request's stages with their counts, its routes, what is known of the user, and every merged item."""
    question, routes = trace.question, list(trace.found)
    recalled = np.unique(np.concatenate([_items(trace, route) for route in routes]))
    taken = np.unique(trace.exposed)
    shown = np.zeros(len(trace.merged), bool)
    shown[trace.final] = True
    kept = np.zeros(len(trace.merged), bool)
    kept[trace.kept] = True
    length = min(max(question.parameters.final, question.k), len(trace.kept))
    stages = [
        {"stage": "recall", "items": len(recalled)},
        {"stage": "exposure", "items": len(recalled) - len(taken), "taken": len(taken)},
        {"stage": "merge", "items": len(trace.merged)},
        {"stage": "coarse", "items": len(trace.kept)},
        {"stage": "fine", "items": length},
        {"stage": "final", "items": len(trace.final)},
    ]
    of_routes = [
        {
            "route": route,
            "state": trace.states[route][0],
            "ms": round(trace.states[route][1], 3),
            "recalled": len(_items(trace, route)),
            "exposed": int(np.isin(_items(trace, route), taken).sum()),
            **{
                stage: int((chosen & (trace.giver == number)).sum())
                for stage, chosen in (("merged", np.ones(len(kept), bool)), ("coarse", kept), ("final", shown))
            },
        }
        for number, route in enumerate(routes)
    ]
    return {
        **{"request": question.request, "bundle": engine.name, "user": question.user, "domain": question.domain},
        **{"time": engine.iso(question.time), "known_user": trace.user > 0, "k": question.k},
        **{"arms": dict(question.arms), "degraded": trace.degraded, "ms": trace.ms},
        "user_facts": engine.facts("user", trace.user),
        "history": _history(engine, trace),
        "stages": stages,
        "routes": of_routes,
        "items": _merged(engine, trace),
    }


def why(engine: Engine, trace: Trace, item: str) -> dict[str, Any]:
    """At which stage an item ended, and by how much it fell short; and what the fine ranker would have made of it."""
    row = engine.row("item", item)
    told: dict[str, Any] = {"item": item, "known": row > 0, "facts": engine.facts("item", row), "shown": False}
    numbers: dict[str, Any] = dict.fromkeys(("rank", "limit", "value", "cut", "short_by"))
    nothing: dict[str, Any] = {"routes": [], "scores": None, "would_rank": None}
    if not row:
        return {**told, **numbers, **nothing, "stage": "unknown", "because": "The bundle does not know this item."}
    routes = _routes_of(trace, row)
    at = np.flatnonzero(trace.merged == row)
    rest: dict[str, Any] = {"routes": routes, **_would(engine, trace, row, int(at[0]) if len(at) else None)}
    if len(at):
        stage, because, found = _of_merged(trace, int(at[0]))
        return {**told, **numbers, **found, **rest, "stage": stage, "because": because, "shown": stage == "final"}
    if row in trace.exposed:
        because = "The exposure filter took it: it was shown to this user lately."
        return {**told, **numbers, **rest, "stage": "exposure", "because": because}
    if not engine.available[row]:
        return {
            **told,
            **numbers,
            **rest,
            "stage": "withdrawn",
            "because": "It may not be shown: it is withdrawn or not yet published.",
        }
    if routes:
        best = min(routes, key=lambda one: one["rank"])
        limit = trace.question.parameters.merged
        because = (
            f"{_named(routes)} recalled it, at best at {best['rank']}; the merge was full at {limit:,} before that."
        )
        return {**told, **numbers, **rest, "stage": "merge", "because": because, "rank": best["rank"], "limit": limit}
    because = f"None of {len(trace.found)} routes recalled it for this user."
    return {**told, **numbers, **rest, "stage": "recall", "because": because}


def _of_merged(trace: Trace, place: int) -> tuple[str, str, dict[str, Any]]:
    """The stage at which a merged item ended, why, and the numbers of that."""
    parameters, k = trace.question.parameters, len(trace.final)
    seen = np.flatnonzero(trace.kept == place)
    if place in trace.final:
        rank = int(np.flatnonzero(trace.final == place)[0]) + 1
        return "final", f"It is shown, at {rank} of {k}.", {"rank": rank, "limit": k}
    if not len(seen):
        scores = trace.coarse if trace.coarse is not None else -np.arange(len(trace.merged), dtype=np.float32)
        rank = int((scores > scores[place]).sum()) + 1
        who = "The coarse ranker" if trace.coarse is not None else "The coarse ranker was left out; the merge"
        cut = float(scores[trace.kept].min())
        return _short("coarse", who, rank, parameters.keep, float(scores[place]), cut)
    if trace.fused is None:
        return "coarse", "The fine ranker was left out, and the coarse order ended before it.", {"limit": k}
    value = float(trace.fused[seen[0]])
    rank = int((trace.fused > value).sum()) + 1
    if rank <= k:
        because = f"The fine ranker put it at {rank}; more varied items were preferred ({parameters.diversity})."
        return "fine", because, {"rank": rank, "limit": k, "value": value}
    shown = np.isin(trace.kept, trace.final)
    return _short("fine", "The fine ranker", rank, k, value, float(trace.fused[shown].min()))


def _short(stage: str, who: str, rank: int, limit: int, value: float, cut: float) -> tuple[str, str, dict[str, Any]]:
    short = cut - value
    because = (
        f"{who} put it at {rank:,} and keeps {limit:,}; it fell short by {short:.3g} ({value:.3g} against {cut:.3g})."
    )
    return stage, because, {"rank": rank, "limit": limit, "value": value, "cut": cut, "short_by": short}


def _would(engine: Engine, trace: Trace, row: int, place: int | None) -> dict[str, Any]:
    """What the fine ranker makes of an item, as last of the merge where it is not in it."""
    position = len(trace.merged) + 1 if place is None else place + 1
    scores, fused = engine.judge(trace, row, position)
    rank = None if trace.fused is None else int((trace.fused > fused).sum()) + 1
    return {"scores": scores, "would_rank": rank}


def _merged(engine: Engine, trace: Trace) -> list[dict[str, Any]]:
    labels, routes = engine.ranker.schema.labels, list(trace.found)
    nobody = np.zeros(len(trace.merged), np.int64)
    coarse_rank = None if trace.coarse is None else rank_within(trace.coarse, nobody)
    fine_rank = None if trace.fused is None else rank_within(trace.fused, nobody[: len(trace.kept)])
    seen = {place: number for number, place in enumerate(trace.kept.tolist())}
    final = {place: rank for rank, place in enumerate(trace.final.tolist(), 1)}
    ranks = {route: {item: rank for rank, item in enumerate(_items(trace, route).tolist())} for route in routes}
    told = []
    for place, item in enumerate(trace.merged.tolist()):
        number = seen.get(place)
        scores = None if number is None or trace.scores is None else trace.scores[number].tolist()
        told.append(
            {
                "item": engine.name_of("item", item),
                "facts": engine.facts("item", item),
                "final_rank": final.get(place),
                "route": routes[int(trace.giver[place])],
                "routes": [
                    {"route": route, "rank": of[item] + 1, "score": float(trace.found[route].scores[of[item]])}
                    for route, of in ranks.items()
                    if item in of
                ],
                "position": place + 1,
                "coarse_rank": None if coarse_rank is None else int(coarse_rank[place]),
                "coarse": None if trace.coarse is None else float(trace.coarse[place]),
                "fine_rank": None if number is None or fine_rank is None else int(fine_rank[number]),
                "score": None if number is None or trace.fused is None else float(trace.fused[number]),
                "scores": None if scores is None else dict(zip(labels, scores, strict=True)),
                "stage": "final" if place in final else "merge" if number is None else "fine" if scores else "coarse",
            }
        )
    return told


def _history(engine: Engine, trace: Trace) -> list[dict[str, Any]]:
    items, times = engine.history(trace.user, trace.question.time)
    latest = list(zip(items.tolist(), times.tolist(), strict=True))[::-1][:HISTORY_SHOWN]
    return [
        {"item": engine.name_of("item", item), "time": engine.iso(when), "facts": engine.facts("item", item)}
        for item, when in latest
    ]


def _items(trace: Trace, route: str) -> np.ndarray:
    items = trace.found[route].items
    return items[items >= 0]


def _routes_of(trace: Trace, row: int) -> list[dict[str, Any]]:
    places = {route: np.flatnonzero(trace.found[route].items == row) for route in trace.found}
    return [
        {"route": route, "rank": int(at[0]) + 1, "score": float(trace.found[route].scores[at[0]])}
        for route, at in places.items()
        if len(at)
    ]


def _named(routes: list[dict[str, Any]]) -> str:
    return " and ".join(one["route"] for one in routes)


def plain(value: Any) -> Any:
    """A fact as JSON can tell it: a time in ISO 8601, a list as its values."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    return value if isinstance(value, (str, int, float, bool, list)) or value is None else str(value)
