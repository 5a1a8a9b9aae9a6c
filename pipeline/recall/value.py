"""R22: what each route is worth, and the quotas that follow from it.

A route's worth is what the union of the routes, and their merge, recall less without it. Quotas are searched on
requests of the validation slice by coordinate ascent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.evaluation.significance import Interval, paired_bootstrap
from pipeline.recall.merge import NO_LIMIT, limits_of, turns

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

SHARES = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7)
REQUESTS = 2_000
SWEEPS = 4
RESAMPLES = 400
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Judged:
    """N candidates and P held-out positives, laid out so that the merge need not be made to know where it puts them.

    `place` and `rank` (N,) are sorted by request and item; `heads` (G,) says where each item of a request begins.
    `own` (P,) is the number in `heads` of each positive's item, -1 where no route has it, and `owner` (P,) its request.
    `rivals` lists, for each recalled positive, all items of its request, from `begins` on.
    """

    place: Integers
    rank: Integers
    heads: Integers
    own: Integers
    owner: Integers
    rivals: Integers
    begins: Integers

    @classmethod
    def of(cls, candidates: pl.DataFrame, positives: pl.DataFrame, routes: Sequence[str]) -> Judged:
        """From candidates (request, item, route, rank) and positives (request, item); `routes` gives the places."""
        sorted_ = candidates.sort("request", "item")
        pair = _pairs(sorted_)
        heads = np.flatnonzero(np.diff(pair, prepend=-1))
        items, wanted = pair[heads], _pairs(positives)
        own = np.searchsorted(items, wanted)
        recalled = own < len(items)
        recalled[recalled] = items[own[recalled]] == wanted[recalled]
        owner = positives["request"].to_numpy().astype(np.int64)
        first, last = (np.searchsorted(items, (owner[recalled] + later) << 32) for later in (0, 1))
        begins = np.cumsum(last - first) - (last - first)
        rivals = np.arange((last - first).sum()) + np.repeat(first - begins, last - first)
        place = sorted_["route"].cast(pl.Enum(list(routes))).to_physical().to_numpy()
        own = np.where(recalled, own, -1)
        return cls(place, sorted_["rank"].to_numpy(), heads, own, owner, rivals, begins)

    def positions(self, limits: Integers, without: int | None = None) -> Integers:
        """Where the merge of all routes, or of all but one, puts each positive (P,); `NO_LIMIT` where it does not."""
        position = np.full(len(self.owner), NO_LIMIT)
        recalled = np.flatnonzero(self.own >= 0)
        if not len(recalled):
            return position
        turn = turns(self.place, self.rank, limits)
        if without is not None:
            turn[self.place == without] = NEVER
        turn = np.minimum.reduceat(turn, self.heads)
        mine = turn[self.own[recalled]]
        earlier = turn[self.rivals] < np.repeat(mine, np.diff(self.begins, append=len(self.rivals)))
        place = np.add.reduceat(earlier, self.begins, dtype=np.int64) + 1
        position[recalled[mine < NEVER]] = place[mine < NEVER]
        return position

    def united(self, without: int | None = None) -> npt.NDArray[np.bool_]:
        """Whether any route, or any but one, has each positive (P,)."""
        return self.positions(np.full(int(self.place.max(initial=0)) + 1, NO_LIMIT), without) < NO_LIMIT

    def recall(self, hit: npt.NDArray[np.bool_]) -> Floats:
        """The share of its positives that is hit, of each request that has any, in their order."""
        total = np.bincount(self.owner)
        share = np.bincount(self.owner, hit)[total > 0] / total[total > 0]
        return share.astype(np.float64)


def route_values(
    judged: Judged, routes: Sequence[str], quota: dict[str, int], size: int, users: Integers, domains: Sequence[str]
) -> pl.DataFrame:
    """What the union and the merge recall less without each route: of, domain, route, with, without, difference, low,
    high, requests.

    `users` and `domains` (R,) are those of the requests with a positive; intervals are over users.
    """
    limits = limits_of(routes, quota)
    whole = {"union": judged.united(), "merge": judged.positions(limits) <= size}
    names = np.array(domains)
    groups = {"all": np.ones(len(names), np.bool_), **{name: names == name for name in sorted(set(domains))}}
    rows = []
    for place, route in enumerate(routes):
        left = {"union": judged.united(place), "merge": judged.positions(limits, place) <= size}
        for of, hit in whole.items():
            ours, theirs = judged.recall(hit), judged.recall(left[of])
            for domain, group in groups.items():
                value = paired_bootstrap((ours - theirs)[group], users[group], resamples=RESAMPLES)
                means = {"with": float(ours[group].mean()), "without": float(theirs[group].mean())}
                row = {"of": of, "domain": domain, "route": route, **means, "difference": value.mean}
                rows.append({**row, "low": value.low, "high": value.high, "requests": int(group.sum())})
    return pl.DataFrame(rows)


def quota_gain(judged: Judged, routes: Sequence[str], quota: dict[str, int], depth: int, users: Integers) -> Interval:
    """What the quotas add to the recall of the merge's first `depth` items, against routes that take equal turns."""
    ours, even = (judged.positions(limits_of(routes, one)) <= depth for one in (quota, {}))
    return paired_bootstrap(judged.recall(ours) - judged.recall(even), users, resamples=RESAMPLES)


def best_quotas(
    candidates: pl.DataFrame,
    positives: pl.DataFrame,
    routes: Sequence[str],
    *,
    per_route: int,
    size: int,
    seed: int = 0,
) -> dict[str, int]:
    """The quotas with the highest recall, the mean of that of the first `per_route` and of the first `size` merged.

    Coordinate ascent over shares of `per_route`, from equal turns or from one route with the others only to fill up,
    whichever is best: so no single route does better on these requests. A step is taken if what it adds exceeds the
    standard error of the requests' own differences, lest chance decide. Routes without a limit are left out. Up to
    2,000 requests are judged, chosen at random among those of which a positive was recalled.
    """
    some = _sample(candidates, positives, routes, seed)
    if not len(some.owner):
        return {}
    depths = (min(per_route, size), size)

    def recall(limits: Integers) -> Floats:
        position = some.positions(limits)
        shares: Floats = np.mean([some.recall(position <= depth) for depth in depths], axis=0)
        return shares

    count = len(routes)
    starts = [np.full(count, NO_LIMIT), *(np.where(np.eye(count, dtype=bool), NO_LIMIT, 0))]
    steps = [*(round(share * per_route) for share in SHARES), NO_LIMIT]
    limits = max(starts, key=lambda start: recall(start).mean())
    reached = recall(limits)
    for _ in range(SWEEPS):
        before = limits
        for place in range(count):
            tried = [np.where(np.arange(count) == place, step, limits) for step in steps if step != limits[place]]
            recalls = [recall(one) for one in tried]
            best = int(np.argmax([one.mean() for one in recalls]))
            gain = recalls[best] - reached
            if gain.mean() > gain.std() / np.sqrt(len(gain)):
                limits, reached = tried[best], recalls[best]
        if limits is before:
            break
    return {route: int(limit) for route, limit in zip(routes, limits, strict=True) if limit != NO_LIMIT}


def _sample(candidates: pl.DataFrame, positives: pl.DataFrame, routes: Sequence[str], seed: int) -> Judged:
    recalled = positives.join(candidates, on=["request", "item"], how="semi")["request"].unique().sort()
    chosen = pl.col("request").is_in(recalled.sample(min(REQUESTS, len(recalled)), seed=seed).implode())
    return Judged.of(candidates.filter(chosen), positives.filter(chosen), routes)


def _pairs(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    request, item = (table[name].to_numpy().astype(np.int64) for name in ("request", "item"))
    return request << 32 | item
