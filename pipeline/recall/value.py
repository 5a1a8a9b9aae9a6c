"""R22: what each route is worth, and the quotas that follow from it.

A route's worth is what the union of the routes, and their merge, recall less without it. Quotas are searched on
requests of the validation slice by coordinate ascent, each step a whole merge by the kernel that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.evaluation.significance import Interval, paired_bootstrap
from pipeline.recall.merge import NO_LIMIT, limits_of, snake

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

SHARES = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7)
REQUESTS = 2_000
SWEEPS = 4
RESAMPLES = 400


@dataclass(frozen=True)
class Judged:
    """N candidates, sorted by request, with the number of the held-out positive that each is (-1 = none), and the
    request that each of P positives belongs to."""

    request: Integers
    item: Integers
    place: Integers
    rank: Integers
    positive: Integers
    owner: Integers

    @classmethod
    def of(cls, candidates: pl.DataFrame, positives: pl.DataFrame, routes: Sequence[str]) -> Judged:
        """From candidates (request, item, route, rank) and positives (request, item); `routes` gives the places."""
        numbered = positives.select("request", "item").with_row_index("positive")
        joined = candidates.join(numbered, on=["request", "item"], how="left", maintain_order="left")
        place = joined["route"].cast(pl.Enum(list(routes))).to_physical().to_numpy()
        request, item, rank = (joined[name].to_numpy() for name in ("request", "item", "rank"))
        number = joined["positive"].cast(pl.Int64).fill_null(-1).to_numpy()
        return cls(request, item, place, rank, number, positives["request"].to_numpy())

    def positions(self, limits: Integers, size: int, without: int | None = None) -> Integers:
        """Where the merge of all routes, or of all but one, puts each positive (P,); `NO_LIMIT` where it does not."""
        chosen = slice(None) if without is None else np.flatnonzero(self.place != without)
        columns = [column[chosen] for column in (self.request, self.item, self.place, self.rank)]
        kept, position = snake(*columns, limits=limits, size=size)
        number = self.positive[chosen][kept]
        found = np.full(len(self.owner), NO_LIMIT)
        found[number[number >= 0]] = position[number >= 0]
        return found

    def united(self, without: int | None = None) -> npt.NDArray[np.bool_]:
        """Whether any route, or any but one, has each positive (P,)."""
        found = np.zeros(len(self.owner), np.bool_)
        has = self.positive >= 0
        if without is not None:
            has &= self.place != without
        found[self.positive[has]] = True
        return found

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
    whole = {"union": judged.united(), "merge": judged.positions(limits, size) <= size}
    names = np.array(domains)
    groups = {"all": np.ones(len(names), np.bool_), **{name: names == name for name in sorted(set(domains))}}
    rows = []
    for place, route in enumerate(routes):
        left = {"union": judged.united(place), "merge": judged.positions(limits, size, place) <= size}
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
    ours, even = (judged.positions(limits_of(routes, one), depth) <= depth for one in (quota, {}))
    return paired_bootstrap(judged.recall(ours) - judged.recall(even), users, resamples=RESAMPLES)


def best_quotas(judged: Judged, routes: Sequence[str], *, per_route: int, size: int, seed: int = 0) -> dict[str, int]:
    """The quotas with the highest recall, the mean of that of the first `per_route` and of the first `size` merged.

    Coordinate ascent over shares of `per_route`, from equal turns or from one route with the others only to fill up,
    whichever is best: so no single route does better on these requests. A step is taken if what it adds exceeds the
    standard error of the requests' own differences, lest chance decide. Routes without a limit are left out. Up to
    2,000 requests are judged, chosen at random among those of which a positive was recalled.
    """
    some = _sample(judged, seed)
    if not len(some.owner):
        return {}
    depths = (min(per_route, size), size)

    def recall(limits: Integers) -> Floats:
        position = some.positions(limits, size)
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


def _sample(judged: Judged, seed: int) -> Judged:
    """Only requests with a recalled positive, and only so many of them."""
    useful = np.unique(judged.request[judged.positive >= 0])
    chosen = np.random.default_rng(seed).permutation(useful)[:REQUESTS]
    rows, kept = np.isin(judged.request, chosen), np.isin(judged.owner, chosen)
    number = np.where(judged.positive >= 0, np.cumsum(kept)[judged.positive] - 1, -1)
    return Judged(
        request=judged.request[rows],
        item=judged.item[rows],
        place=judged.place[rows],
        rank=judged.rank[rows],
        positive=number[rows],
        owner=judged.owner[kept],
    )
