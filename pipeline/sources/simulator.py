"""A market with known truth: users, items and domains whose click probabilities can be asked for.

The click logit of user u, item i, domain d at time t and position k is

    base_d + a_d interest(u, i, t) + affinity_d[segment_u, category_i] + bias_d[category_i] + q_d quality_i
           + f_d exp(-age_i(t) / decay) + c_d taste(u, t)·content_i + appeal[category_i] + eagerness[segment_u]
           + place match + user bias - position effect · log k

and its weights a, q, f, c differ between domains in size and sign; affinity and bias of domains 2k and 2k+1 are each
other's opposite. Long view, like and convert follow a click with logits of their own; where `task_affinity` is not
zero, each task wants other categories of a segment's users than the others, a click among them. A conversion is seen
only after a delay. An old policy that knows popularity and something of the users' interests chose what was shown, save
for a slice of sessions that show items at random.

The log is made in blocks of fixed size, each from its own seed, in the order of time, so that neither memory nor
content depends on how many blocks there are at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import config
from pipeline.features import geohash
from pipeline.lake import InputError
from pipeline.progress import progress
from pipeline.sources.raw import RawLog

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

DAY = 86_400_000_000
START = 1_704_067_200_000_000  # 2024-01-01 00:00 UTC in µs
TASKS = ("click", "long_view", "like", "convert")
BLOCK = 131_072
HISTORY_BLOCK = 65_536
LONGEST_SESSION = 11
ANCIENT = START - 1_000 * DAY  # before any birth


PRECISION, WEST, SOUTH = 5, 4_400, 3_240  # the grid's cells as geohashes

# name, share of the traffic, shift of the logit, and what pays there: interest, quality, freshness, taste
DOMAINS = (
    ("home", 0.30, 0.0, 1.1, 0.9, 0.4, 0.8),
    ("explore", 0.20, 0.5, -0.6, 1.3, 0.8, -0.5),
    ("search", 0.20, -0.1, 1.8, 0.7, -0.2, 1.1),
    ("video", 0.15, 0.0, 0.7, 1.5, -0.5, 0.7),
    ("live", 0.15, -0.2, 1.1, -0.3, 1.3, -0.3),
    ("shop", 0.15, -0.2, 1.4, 0.9, 0.5, 0.2),
)
HOURS = np.array([3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 6, 6, 6, 7, 9, 10, 11, 11, 9, 6], dtype=np.float64)
GENDERS = ("female", "male", "other")
AGES = ("0-17", "18-24", "25-29", "30-34", "35-39", "40-49", "50-59", "60+")


@dataclass(frozen=True)
class World:
    """Every hidden and visible property, as arrays: domains (D…), users (U…), items (I…), all numbered from 0."""

    domain_names: NDArray[np.str_]  # (D,)
    domain_share: Floats  # (D,) cumulative
    domain_shift: Floats  # (D,)
    domain_weights: Floats  # (D, 4): interest, quality, freshness, taste
    affinity: Floats  # (D, segments, categories)
    bias: Floats  # (D, categories)
    appeal: Floats  # (categories,)
    eagerness: Floats  # (segments,)
    task_affinity: Floats  # (4, segments, categories)
    centroids: Floats  # (categories, content)

    segment: Ints  # (U,)
    gender: Ints  # (U,)
    age: Ints  # (U,)
    user_place: Ints  # (U,)
    user_bias: Floats  # (U,)
    activity: Floats  # (U,) cumulative
    interests: Ints  # (U, 4) categories
    strengths: Floats  # (U, 4), 0 where the user has fewer interests
    drift_time: Ints  # (U,) when the first interest becomes `drift_to`; never: the largest integer
    drift_to: Ints  # (U,)
    follows: Ints  # (U, 6) authors, -1 where the user follows fewer
    newcomer: NDArray[np.bool_]  # (U,) whether there is no history of the user

    author: Ints  # (I,)
    category: Ints  # (I,)
    tags: Ints  # (I, 4), -1 where the item has fewer
    item_place: Ints  # (I,)
    published: Ints  # (I,) µs
    quality: Floats  # (I,)
    author_quality: Floats  # (I,)
    content: Floats  # (I, content), unit length

    start: int
    end: int
    market: config.Market

    def save(self, folder: Path) -> None:
        np.savez(folder / "world.npz", **{**vars(self), "market": json.dumps(asdict(self.market))})

    @classmethod
    def load(cls, folder: Path) -> World:
        """The world whose events lie in `folder`."""
        with np.load(folder / "world.npz") as arrays:
            stored: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        stored["market"] = config.Market(**json.loads(str(stored["market"])))
        return cls(**{**stored, "start": int(stored["start"]), "end": int(stored["end"])})


def simulate(settings: config.Simulator, out: Path) -> RawLog:
    """Make a market of the given size. Its world goes to `out` now, `truth.parquet` as the events are read.

    Ids are 1 … users and 1 … items. Raises `InputError` when there are fewer than two domains.
    """
    if settings.domains < 2:
        raise InputError("source.domains: the simulated market needs at least 2 domains, so that they can differ")
    seed, log_seed, history_seed = np.random.SeedSequence(settings.seed).spawn(3)
    world = make_world(settings, np.random.default_rng(seed))
    world.save(out)
    shelf = _Shelf.of(world)
    return RawLog(
        events=_events(world, shelf, settings.impressions, log_seed, out / "truth.parquet"),
        items=_item_table(world),
        users=_user_table(world),
        history=_history(world, shelf, history_seed),
        names={"events": "the simulated log"},
    )


def true_probability(
    folder: Path, users: Ints, items: Ints, domains: NDArray[np.str_], times: Ints, position: int | Ints = 1
) -> dict[str, Floats]:
    """True probabilities (N,) of each task for any triples, as `truth.parquet` has them for those shown.

    `users` and `items` are ids, `domains` names, `times` µs since 1970; a follow-up task counts jointly with its click.
    """
    world = World.load(folder)
    order = np.argsort(world.domain_names)
    domain = order[np.searchsorted(world.domain_names, domains, sorter=order)]
    shape = np.shape(users)
    joint = _joint(world, users - 1, items - 1, domain, times, np.broadcast_to(position, shape))
    return dict(zip(TASKS, joint, strict=True))


def make_world(settings: config.Simulator, rng: np.random.Generator) -> World:
    """Draw domains, items and users."""
    m = settings.market
    start, end = START, START + settings.days * DAY
    domains = _draw_domains(m, settings.domains, rng)
    centroids = _unit(rng.normal(size=(m.categories, m.content)))
    items = _draw_items(m, settings.items, centroids, start, end, rng)
    users = _draw_users(m, settings.users, start, end, rng)
    follows = _draw_follows(m.follows, items, users["interests"], rng)
    newcomer = rng.random(settings.users) < m.newcomers
    task_affinity = np.stack([m.task_affinity * _draw_affinity(m, rng) for _ in TASKS])
    told = {**domains, **users, **items, "follows": follows, "newcomer": newcomer, "task_affinity": task_affinity}
    return World(**told, centroids=centroids, start=start, end=end, market=m)


def _draw_domains(m: config.Market, count: int, rng: np.random.Generator) -> dict[str, Any]:
    rows = [DOMAINS[d % len(DOMAINS)] for d in range(count)]
    names = [row[0] if d < len(DOMAINS) else f"{row[0]}{d // len(DOMAINS) + 1}" for d, row in enumerate(rows)]
    share = np.array([row[1] for row in rows])
    affinity = np.empty((count, m.segments, m.categories))
    bias = np.empty((count, m.categories))
    for d in range(count):
        fresh = _draw_affinity(m, rng)
        tilt = rng.normal(size=m.categories)
        affinity[d] = m.affinity * fresh if d % 2 == 0 else 0.2 * m.affinity * fresh - affinity[d - 1]
        bias[d] = m.bias * tilt if d % 2 == 0 else 0.2 * m.bias * tilt - bias[d - 1]
    return {
        "domain_names": np.array(names),
        "domain_share": np.cumsum(share / share.sum()),
        "domain_shift": np.array([row[2] for row in rows]),
        "domain_weights": np.array([row[3:] for row in rows]) * (m.interest, m.quality, m.freshness, m.taste),
        "affinity": affinity,
        "bias": bias,
        "appeal": m.appeal * rng.normal(size=m.categories),
        "eagerness": m.eagerness * rng.normal(size=m.segments),
    }


def _draw_affinity(m: config.Market, rng: np.random.Generator) -> Floats:
    """Of every segment and category, with variance 1."""
    affinity: Floats = rng.normal(size=(m.segments, m.rank)) @ rng.normal(size=(m.rank, m.categories)) / np.sqrt(m.rank)
    return affinity


def _draw_items(
    m: config.Market, count: int, centroids: Floats, start: int, end: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Items of an author share most of their category, a place, a style and a part of their quality."""
    authors = -(-count // m.items_per_author)
    author = rng.integers(authors, size=count)
    own = rng.random(count) < 0.85
    category = np.where(own, rng.integers(m.categories, size=authors)[author], rng.integers(m.categories, size=count))
    author_quality = rng.normal(size=authors)[author]
    style = rng.normal(size=(authors, m.content))[author]
    noise = rng.normal(size=(count, m.content))
    tags, tag_vectors = _draw_tags(m, category, centroids, rng)
    vector = centroids[category] * 2 + tag_vectors + 0.15 * style + 0.15 * noise
    published = np.where(
        rng.random(count) < 0.7,
        start - (rng.random(count) * m.past_days * DAY).astype(np.int64),
        start + (rng.random(count) * (end - start)).astype(np.int64),
    )
    published[np.unique(category, return_index=True)[1]] = start - int(m.past_days * DAY)
    return {
        "author": author,
        "category": category,
        "tags": tags,
        "item_place": rng.integers(m.grid**2, size=authors)[author],
        "published": published,
        "quality": 0.95 * author_quality + 0.31 * rng.normal(size=count),
        "author_quality": author_quality,
        "content": _unit(vector),
    }


def _draw_tags(m: config.Market, category: Ints, centroids: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Two to four tags an item, four in five of them from the few of its own category, and their mean direction."""
    per_category = m.tags // m.categories
    owner = np.repeat(np.arange(m.categories), per_category)
    vectors = 0.5 * centroids[owner] + 0.15 * rng.normal(size=(len(owner), m.content))
    own = (
        category[:, None] * per_category
        + rng.permuted(np.broadcast_to(np.arange(per_category), (len(category), per_category)), axis=1)[:, :4]
    )
    other = rng.integers(len(owner), size=own.shape)
    tags = np.where(rng.random(own.shape) < 0.8, own, other)
    for column in range(1, tags.shape[1]):
        repeated = (tags[:, :column] == tags[:, [column]]).any(axis=1)
        tags[repeated, column] = -1
    tags[np.arange(tags.shape[1]) >= rng.integers(2, 5, size=(len(tags), 1))] = -1
    present = (tags >= 0)[:, :, None]
    return tags, (vectors[tags] * present).sum(axis=1) / present.sum(axis=1)


def _draw_users(m: config.Market, count: int, start: int, end: int, rng: np.random.Generator) -> dict[str, Any]:
    """Interests, gender and age follow the segment's preferences; activity has a heavy tail."""
    segment = rng.integers(m.segments, size=count)
    preference = rng.gamma(0.5, size=(m.segments, m.categories)) + 0.1
    logits = np.log(preference)[segment] + rng.gumbel(size=(count, m.categories))
    chosen = np.argsort(-logits, axis=1)[:, :5]
    number = rng.integers(2, 5, size=(count, 1))
    strengths = np.where(np.arange(4) < number, 0.8 + 0.4 * rng.random((count, 4)), 0.0)
    drifts = rng.random(count) < m.drifting
    strengths[drifts, 0] *= m.passing
    when = start + (rng.random(count) * (end - start)).astype(np.int64)
    return {
        "segment": segment,
        "gender": _draw_by_segment(segment, m.segments, len(GENDERS), rng),
        "age": _draw_by_segment(segment, m.segments, len(AGES), rng),
        "user_place": rng.integers(m.grid**2, size=count),
        "user_bias": m.user_bias * rng.normal(size=count),
        "activity": np.cumsum(np.minimum(1 + rng.pareto(1.6, size=count), 40)),
        "interests": chosen[:, :4],
        "strengths": strengths,
        "drift_time": np.where(drifts, when, np.iinfo(np.int64).max),
        "drift_to": chosen[:, 4],
    }


def _draw_follows(most: int, items: dict[str, Any], interests: Ints, rng: np.random.Generator) -> Ints:
    """Up to `most` authors of a user's first two interests, the good ones more often."""
    author, first = np.unique(items["author"], return_index=True)
    order = np.argsort(items["category"][first], kind="stable")
    author, category = author[order], items["category"][first][order]
    weight = np.concatenate([[0.0], np.cumsum(np.exp(items["author_quality"][first][order]))])
    users = len(interests)
    wanted = np.take_along_axis(interests, rng.integers(2, size=(users, most)), axis=1)
    start, stop = (np.searchsorted(category, wanted, side=side) for side in ("left", "right"))
    drawn = weight[start] + rng.random((users, most)) * (weight[stop] - weight[start])
    place = np.clip(np.searchsorted(weight, drawn, side="right") - 1, start, np.maximum(stop - 1, start))
    follows: Ints = author[np.minimum(place, len(author) - 1)]
    for column in range(1, most):
        follows[(follows[:, :column] == follows[:, [column]]).any(axis=1), column] = -1
    follows[(start == stop) | (np.arange(most) >= rng.integers(most + 1, size=(users, 1)))] = -1
    return follows


def _draw_by_segment(segment: Ints, segments: int, values: int, rng: np.random.Generator) -> Ints:
    shares = np.cumsum(rng.dirichlet(np.full(values, 0.7), size=segments), axis=1)
    drawn: Ints = (rng.random((len(segment), 1)) > shares[segment, :-1]).sum(axis=1)
    return drawn


def _current_interests(world: World, user: Ints, time: Ints) -> Ints:
    """The users' interest categories (N, 4) as of a time."""
    interests = world.interests[user]
    interests[:, 0] = np.where(time >= world.drift_time[user], world.drift_to[user], interests[:, 0])
    return interests


def _joint(world: World, user: Ints, item: Ints, domain: Ints, time: Ints, position: Ints) -> tuple[Floats, ...]:
    """Probabilities (N,) of the four tasks; the last three jointly with the click."""
    m = world.market
    interests, strengths = _current_interests(world, user, time), world.strengths[user]
    category = world.category[item]
    interest = (strengths * (interests == category[:, None])).sum(axis=1)
    wish = _unit(np.einsum("nk,nkc->nc", strengths, world.centroids[interests]))
    taste = np.einsum("nc,nc->n", wish, world.content[item])
    age = np.maximum(time - world.published[item], 0)
    freshness = np.exp(-age / (m.decay_days * DAY))
    pays = world.domain_weights[domain]
    near = _nearness(m.grid, world.user_place[user], world.item_place[item])
    quality, author = world.quality[item], world.author_quality[item]
    own = world.task_affinity[:, world.segment[user], category]
    click = _sigmoid(
        m.base
        + world.domain_shift[domain]
        + pays[:, 0] * interest
        + pays[:, 1] * quality
        + pays[:, 2] * freshness
        + pays[:, 3] * taste
        + world.affinity[domain, world.segment[user], category]
        + world.bias[domain, category]
        + world.appeal[category]
        + world.eagerness[world.segment[user]]
        + m.place * near
        + world.user_bias[user]
        - m.position * np.log(position)
        + own[0]
    )
    long_view = _sigmoid(-0.6 + 0.7 * quality + 1.2 * taste + 0.4 * interest - world.bias[domain, category] + own[1])
    like = _sigmoid(-1.9 + 0.7 * author + 0.9 * interest + 0.8 * world.user_bias[user] + own[2])
    convert = _sigmoid(-2.6 + 0.5 * quality + 0.8 * interest + 0.8 * near + 0.5 * freshness + own[3])
    return click, click * long_view, click * like, click * convert


def _nearness(grid: int, here: Ints, there: Ints) -> Floats:
    """1 in the same cell of the grid, 1/2 in one that touches it, else 0."""
    apart: Ints = np.maximum(np.abs(here // grid - there // grid), np.abs(here % grid - there % grid))
    return (2 - np.minimum(apart, 2)) / 2


@dataclass(frozen=True)
class _Shelf:
    """The items as the old policy draws them: sorted by category and birth, with running sums of its weights.

    The items of a category that are alive at a time are one stretch of this order, so a draw is two binary searches.
    """

    item: Ints  # (I,) by category, then birth
    key: Ints  # (I,) category and birth in one ascending number
    weight: Floats  # (I + 1,) running sum
    popular: Floats  # (categories,) cumulative share
    by_birth: Ints  # (I,)
    births: Ints  # (I,) ascending

    @classmethod
    def of(cls, world: World) -> _Shelf:
        item = np.lexsort((world.published, world.category))
        weight = np.exp(world.market.policy_quality * world.quality[item])
        sums = np.bincount(world.category, np.sqrt(np.exp(world.quality)), world.market.categories)
        by_birth = np.argsort(world.published, kind="stable")
        return cls(
            item=item,
            key=_key(world.category[item], world.published[item]),
            weight=np.concatenate([[0.0], np.cumsum(weight)]),
            popular=np.cumsum(sums / sums.sum()),
            by_birth=by_birth,
            births=world.published[by_birth],
        )

    def draw(self, category: Ints, time: Ints, born_after: Ints, rng: np.random.Generator) -> Ints:
        """An item (N,) of each category, alive at `time`, by weight; from those born late if there are any."""
        start = np.searchsorted(self.key, _key(category, np.full_like(time, ANCIENT)))
        late = np.searchsorted(self.key, _key(category, born_after))
        stop = np.searchsorted(self.key, _key(category, time), side="right")
        start = np.where(late < stop, late, start)
        low, high = self.weight[start], self.weight[stop]
        place = np.searchsorted(self.weight, low + rng.random(len(time)) * (high - low), side="right") - 1
        return self.item[np.clip(place, start, stop - 1)]

    def draw_uniform(self, time: Ints, rng: np.random.Generator) -> Ints:
        """Any item (N,) alive at `time`, each as likely as the other."""
        alive = np.searchsorted(self.births, time, side="right")
        return self.by_birth[(rng.random(len(time)) * alive).astype(np.int64)]


def _key(category: Ints, time: Ints) -> Ints:
    return category * (1 << 52) + (time - ANCIENT)


def _draw_shown(
    world: World, shelf: _Shelf, user: Ints, time: Ints, interested: float, fresh: float, rng: np.random.Generator
) -> Ints:
    """What the old policy picks (N,): the user's interests as it guesses them, else what is popular."""
    category = np.searchsorted(shelf.popular, rng.random(len(user))).clip(max=world.market.categories - 1)
    strengths = world.strengths[user].cumsum(axis=1)
    pick = (rng.random((len(user), 1)) * strengths[:, -1:] > strengths).sum(axis=1)
    liked = _current_interests(world, user, time)[np.arange(len(user)), pick]
    supplied = np.bincount(world.category, minlength=world.market.categories)[liked] > 0
    category = np.where((rng.random(len(user)) < interested) & supplied, liked, category)
    recent = np.where(rng.random(len(user)) < fresh, time - 3 * DAY, ANCIENT)
    return shelf.draw(category, time, recent, rng)


def _events(
    world: World, shelf: _Shelf, impressions: int, seed: np.random.SeedSequence, truth: Path
) -> Iterator[pl.DataFrame]:
    """The log in the order of time, a block at a time; each block's true probabilities go to `truth`."""
    blocks = -(-impressions // BLOCK)
    clock = _Clock(world)
    writer: pq.ParquetWriter | None = None
    waiting = pl.DataFrame()
    for number, child in enumerate(progress(seed.spawn(blocks), "simulating the log")):
        rng = np.random.default_rng(child)
        begin, until = number * BLOCK / impressions, min((number + 1) * BLOCK / impressions, 1.0)
        block = _sessions(world, shelf, clock, begin, until, min(BLOCK, impressions - number * BLOCK), rng)
        rows = pl.concat([waiting, block]) if waiting.width else block
        rows = rows.sort("time", "user_id", "item_id")
        last = number == blocks - 1
        settled = pl.col("time").dt.epoch("us") < (np.iinfo(np.int64).max if last else int(clock.at(np.array(until))))
        waiting, rows = rows.filter(~settled), rows.filter(settled)
        table = rows.select(pl.col(f"true_{task}").alias(task) for task in TASKS).to_arrow()
        writer = writer or pq.ParquetWriter(truth, table.schema, compression="zstd", write_statistics=False)
        writer.write_table(table)
        yield rows.drop(f"true_{task}" for task in TASKS)
    if writer is not None:
        writer.close()


class _Clock:
    """Time as a function of the share of traffic that has passed: days alike, hours busy or quiet."""

    def __init__(self, world: World) -> None:
        hours = round((world.end - world.start) / DAY * 24)
        traffic = np.cumsum(np.resize(HOURS, hours))
        self.shares = np.concatenate([[0.0], traffic / traffic[-1]])
        self.times = world.start + np.arange(hours + 1) * (DAY // 24)

    def at(self, share: Floats) -> Ints:
        return np.interp(share, self.shares, self.times).astype(np.int64)


def _sessions(
    world: World, shelf: _Shelf, clock: _Clock, begin: float, until: float, impressions: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Sessions that start within a share of the traffic: one user, one domain, distinct items in positions 1, 2, …"""
    m = world.market
    lengths = rng.integers(5, LONGEST_SESSION + 1, size=impressions // 5 + 1)
    sessions = int(np.searchsorted(np.cumsum(lengths), impressions)) + 1
    lengths = lengths[:sessions]
    user = np.searchsorted(world.activity, rng.random(sessions) * world.activity[-1])
    domain = np.searchsorted(world.domain_share, rng.random(sessions)).clip(max=len(world.domain_names) - 1)
    start = clock.at(begin + (until - begin) * rng.random(sessions))
    random = rng.random(sessions) < m.random_sessions

    draws = 2 * LONGEST_SESSION
    session = np.repeat(np.arange(sessions), draws)
    chosen = _draw_shown(world, shelf, user[session], start[session], m.policy_interest, m.policy_fresh, rng)
    chosen = np.where(random[session], shelf.draw_uniform(start[session], rng), chosen).reshape(sessions, draws)
    kept = _first_distinct(chosen, lengths)
    session, column = np.nonzero(kept)
    session, column = session[:impressions], column[:impressions]
    item = chosen[session, column]
    position = kept.cumsum(axis=1)[session, column]
    time = start[session] + ((position - 1) * 10 + rng.random(len(session)) * 5) * 1_000_000
    return _answer(world, user[session], item, domain[session], time.astype(np.int64), position, random[session], rng)


def _first_distinct(chosen: Ints, lengths: Ints) -> NDArray[np.bool_]:
    """Which draws of each row (S, K) to keep: the first `lengths` that repeat no earlier one."""
    order = np.argsort(chosen, axis=1, kind="stable")
    ranked = np.take_along_axis(chosen, order, axis=1)
    repeated = np.zeros(chosen.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return ~repeated & ((~repeated).cumsum(axis=1) <= lengths[:, None])


def _answer(
    world: World,
    user: Ints,
    item: Ints,
    domain: Ints,
    time: Ints,
    position: Ints,
    random: NDArray[np.bool_],
    rng: np.random.Generator,
) -> pl.DataFrame:
    """The impressions with what the users did, and the true probabilities that they would."""
    joint = _joint(world, user, item, domain, time, position)
    click = rng.random(len(user)) < joint[0]
    later = [click & (rng.random(len(user)) * joint[0] < probability) for probability in joint[1:]]
    delay = rng.exponential(world.market.conversion_hours * DAY / 24, size=len(user)).astype(np.int64)
    converted = later[2] & (time + delay < world.end)
    labels = dict(zip(TASKS, (click, later[0], later[1], converted), strict=True))
    return pl.DataFrame(
        {
            "user_id": user + 1,
            "item_id": item + 1,
            "domain": world.domain_names[domain],
            "time": _times(time),
            "shown": np.ones(len(user), dtype=bool),
            "random": random,
            **{task: label.astype(np.int8) for task, label in labels.items()},
            "position": position.astype(np.int16),
            "convert_time": _times(time + delay).set(pl.Series(~converted), None),
            **{f"true_{task}": p.astype(np.float32) for task, p in zip(TASKS, joint, strict=True)},
        }
    )


def _history(world: World, shelf: _Shelf, seed: np.random.SeedSequence) -> Iterator[pl.DataFrame]:
    """Five to thirty clicks a user from before the log, newcomers aside, by the interests of then; two in ten were
    liked."""
    m = world.market
    users = len(world.segment)
    for number, child in enumerate(seed.spawn(-(-users // HISTORY_BLOCK))):
        rng = np.random.default_rng(child)
        block = np.arange(number * HISTORY_BLOCK, min((number + 1) * HISTORY_BLOCK, users))
        user = np.repeat(block, rng.integers(5, 31, size=len(block)))
        time = world.start - 1 - (rng.random(len(user)) * m.history_days * DAY).astype(np.int64)
        time = time[np.lexsort((time, user))]
        clicks = pl.DataFrame(
            {
                "user_id": user + 1,
                "item_id": _draw_shown(world, shelf, user, time, m.history_interest, m.policy_fresh, rng) + 1,
                "behaviour": np.full(len(user), "click"),
                "time": _times(time),
            }
        )
        settled = ~world.newcomer[user]
        likes = clicks.filter(settled & (rng.random(len(user)) < 0.2)).with_columns(behaviour=pl.lit("like"))
        yield pl.concat([clicks.filter(settled), likes]).with_columns(
            pl.int_range(pl.len(), dtype=pl.Int32).over("user_id", "behaviour").alias("rank")
        )


def _item_table(world: World) -> pl.DataFrame:
    tags = pl.DataFrame(world.tags, schema=[f"tag{k}" for k in range(world.tags.shape[1])], orient="row")
    names = tags.select(
        pl.concat_list(pl.when(pl.all() >= 0).then(pl.format("t{}", pl.all()))).list.drop_nulls().alias("tags")
    )["tags"]
    return pl.DataFrame(
        {
            "item_id": np.arange(1, len(world.category) + 1),
            "published": _times(world.published),
            "author_id": world.author + 1,
            "category": _named("c", world.category),
            "tags": names,
            "tag": names.list.first(),
            "place": _geohashes(world.market.grid, world.item_place),
            "content": pl.Series(world.content.astype(np.float32), dtype=pl.Array(pl.Float32, world.market.content)),
        }
    )


def _user_table(world: World) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": np.arange(1, len(world.segment) + 1),
            "segment": _named("s", world.segment),
            "gender": np.array(GENDERS)[world.gender],
            "age": np.array(AGES)[world.age],
            "place": _geohashes(world.market.grid, world.user_place),
            "follows": pl.Series((world.follows + 1).tolist(), dtype=pl.List(pl.Int64)).list.eval(
                pl.element().filter(pl.element() > 0)
            ),
        }
    )


def _named(prefix: str, numbers: Ints) -> pl.Series:
    return pl.select(pl.format("{}{}", pl.lit(prefix), pl.Series(numbers))).to_series()


def _geohashes(grid: int, cells: Ints) -> list[str]:
    return geohash.encode(WEST + cells % grid, SOUTH + cells // grid, PRECISION)


def _times(microseconds: Ints) -> pl.Series:
    return pl.Series(microseconds).cast(pl.Datetime("us", "UTC"))


def _unit(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))
