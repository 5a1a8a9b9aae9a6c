"""The engine: answers requests from a bundle, stage after stage, and can say what became of every item.

Requests that come together are answered together, since most of what a stage costs does not depend on how many they
are. A stage that fails, or is not ready in time, is left out and named; the next one takes what there is: without the
fine ranker the coarse order is shown, without that the merge's, and without a route the others'.

All calls come from one thread, and so does all that is added to what the engine knows.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from pipeline.config import Config, Serve, Share
from pipeline.features.identity import canonical
from pipeline.features.indexes import Indexes
from pipeline.features.store import BUILT_IN_CONTEXT, Rows
from pipeline.lake import InputError
from pipeline.ranking import coarse, explore, fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.coarse import rank_within
from pipeline.ranking.diversity import RERANKERS
from pipeline.ranking.fuse import fuse, with_recall
from pipeline.recall import exposure, merge
from pipeline.recall.candidates import opened
from pipeline.recall.route import NOTHING, Found, Requests, Route, nothing
from pipeline.serving import bundle, explanation, registry
from pipeline.serving.buffer import Happened
from pipeline.serving.bundle import HISTORY, Ids
from pipeline.serving.live import LiveStore, Strips, runs
from pipeline.serving.memory import Remembered, Shown
from pipeline.serving.stages import Routes, Stage

TAKEN = 500
LEFT_BEHIND = 100
SPARE = 10
WARM_UPS = 3
AT_ONCE = 600
FALLBACK = "fallback"

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.integer]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """What an experiment's arm may change: `fusion` multiplies the tuned weights of a task in the exponents, and
    `beside` asks the bundle that stands beside."""

    routes: tuple[str, ...]
    per_route: PositiveInt
    merged: PositiveInt
    quota: tuple[tuple[str, NonNegativeInt], ...]
    keep: PositiveInt
    final: PositiveInt
    fusion: tuple[tuple[str, float], ...] = ()
    diversity: Literal["none", "mmr", "dpp"] = "none"
    diversity_weight: Share = 0.2
    explore: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Question:
    """A request: `time` in µs, `arms` the experiments' layer → arm; `left`: of earlier answers to the user, by domain,
    when that was and what was left behind (`Answer.left`)."""

    request: str
    user: str
    domain: str
    time: int
    k: int
    parameters: Parameters
    context: Mapping[str, str | float | None]
    arms: Mapping[str, str]
    left: Mapping[str, tuple[int, npt.NDArray[np.int32]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """What became of one request. `found` is what each route gave, best first, and `states` how that went and how many
    milliseconds it took; `exposed` the items that the filter took. The M merged items come with the route that gave
    each, their coarse scores (or None), the places (K,) among them that fine ranking saw, its task scores (K, T) and
    their fusion (K,) (or None), and `final`, the places of those that are shown."""

    question: Question
    user: int
    domain: int
    found: dict[str, Found]
    states: dict[str, tuple[str, float]]
    exposed: Numbers
    merged: Numbers
    giver: Numbers
    coarse: npt.NDArray[np.float32] | None
    kept: Integers
    scores: npt.NDArray[np.float32] | None
    fused: npt.NDArray[np.float64] | None
    final: Integers
    degraded: list[str]
    ms: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """A response's body, how it came about, and the items that were ranked high and are not in it (None where none were
    ranked, or there is no use for them)."""

    body: dict[str, Any]
    trace: Trace
    left: npt.NDArray[np.int32] | None


class Engine:
    """A bundle, opened and checked. Raises `InputError` for one that is not whole or not what batch scoring makes; of a
    `trusted` one that is not asked."""

    def __init__(self, folder: Path, settings: Serve | None = None, *, trusted: bool = False) -> None:
        if not trusted:
            bundle.verify(folder)
        self.name = folder.name
        self.config: Config = registry.read_config(folder)
        self.settings = settings or self.config.serve
        self.store = LiveStore.of(folder / "features", users=self.settings.live_users)
        self.end = self.store.slices["end"]
        schema = self.store.schema
        self.domains, self.durations = schema.domains, schema.durations
        self.tasks = tuple(self.config.contract.tasks)
        self._encoder = Encoder(self.store)
        self._ids = {side: Ids.open(folder / "features", side) for side in ("user", "item")}
        self._facts = Indexes.open(folder / "features")
        self._contexts = _contexts(folder / "features")
        self.contexts = tuple(self._contexts)

        self.ranker, self._student = fine.load(folder / "fine"), coarse.load(folder / "coarse")
        self._posterior = explore.load(folder / "fine" / bundle.POSTERIOR)
        self._vectors = np.load(folder / "coarse" / "items.npy")
        if not np.isfinite(self._vectors).all():
            raise InputError(f"{folder}/coarse/items.npy: vectors that are not finite; make the bundle anew")
        told = json.loads((folder / bundle.TOLD).read_text())
        self._quota, self._delayed = told["quota"], told["delayed"]
        self._routes: dict[str, Route] = {
            route: opened(route, folder / "routes" / route, self.store) for route in self.config.recall.routes
        }
        counts = (np.load(folder / "exposure" / f"{side}s.npy") for side in ("user", "item"))
        self._shown = Shown(exposure.load(folder / "exposure"), *counts)
        history = {name: np.load(folder / "history" / f"{name}.npy") for name in HISTORY}
        self._history = Strips(history, length=TAKEN, users=self.settings.live_users)
        self.available = np.zeros(len(self.store.items["code_item_id"]), bool)
        self.available[np.load(folder / "history" / "available.npy")] = True

        self._new: dict[str, int] = {}
        self._asked = Routes(self._routes, self.settings.threads, self.settings.deadlines["routes"])
        self._rankers = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="ranker")
        self._stages = {name: Stage(name, self.settings.deadlines[name]) for name in ("coarse", "fine", "final")}
        self._random = np.random.default_rng()
        self._strangers = self._for_strangers()
        self._cache: Remembered | None = None
        if not trusted:
            self.check_parity(folder)
        self._warm_up()
        if "cache" in self._routes:
            self._routes["cache"] = self._cache = Remembered(self._routes["cache"])

    def close(self) -> None:
        for stage in self._stages.values():
            stage.close()
        self._asked.close()
        self._rankers.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _usual(self) -> Parameters:
        recall, serve = self.config.recall, self.settings
        return Parameters(
            routes=recall.routes,
            per_route=recall.per_route,
            merged=recall.merged,
            quota=tuple(self._quota.items()),
            keep=self.config.coarse.keep,
            final=self.config.fine.keep,
            diversity=serve.diversity,
            diversity_weight=serve.diversity_weight,
            explore=serve.explore,
        )

    def parameters(self, changed: Mapping[str, Any]) -> Parameters:
        """The bundle's own with what an arm changes, such as {"keep": 100, "quota": {"hot": 5}, "fusion": {"like": 2}}.

        Raises `InputError` for a name that is no parameter, a route or a task that there is not, and a value that
        cannot be.
        """
        if not changed:
            return self._usual
        known = {one.name for one in fields(Parameters)}
        if strange := set(changed) - known:
            raise InputError(f"serve.layers: {min(strange)!r} is no parameter; there are {', '.join(sorted(known))}")
        given = dict(changed)
        for name, allowed in (("routes", self._routes), ("quota", self._routes), ("fusion", self.ranker.schema.labels)):
            if wrong := [one for one in given.get(name, ()) if one not in allowed]:
                raise InputError(f"serve.layers: {name}: {wrong[0]!r} is unknown; there are {', '.join(allowed)}")
        if "routes" in given:
            given["routes"] = tuple(given["routes"])
        for name in ("quota", "fusion"):
            if name in given:
                given[name] = tuple({**dict(getattr(self._usual, name)), **given[name]}.items())
        try:
            return TypeAdapter(Parameters).validate_python({**vars(self._usual), **given})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"serve.layers: {place}: {first['msg']} (got {first['input']!r})") from None

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions. Raises `InputError` for a domain that the bundle does not know."""
        for question in questions:
            if question.domain not in self.domains:
                raise InputError(f"domain: {question.domain!r} is unknown; there are {', '.join(self.domains)}")
        answers: dict[str, Answer] = {}
        for parameters in dict.fromkeys(one.parameters for one in questions):
            alike = [one for one in questions if one.parameters == parameters]
            answers |= {one.trace.question.request: one for one in self._answer(alike, parameters)}
        return [answers[question.request] for question in questions]

    def record(self, events: Sequence[Happened]) -> None:
        """What happened counts with the next request: in histories, the exposure filter and statistics (`recount`)."""
        behaviours = self.config.features.behaviours
        positive = self.config.contract.positive
        for event in events:
            item = self._ids["item"].row(event.item)
            user = self._row(event.user, new=True)
            domain = self.domains.index(event.domain) if event.domain in self.domains else -1
            happened = {task: bool(event.labels.get(task)) for task in self.tasks}
            counted = {task: yes and (event.shown or task in self._delayed) for task, yes in happened.items()}
            counted |= {f"behaviour_{name}": item > 0 and happened[task] for name, task in behaviours.items()}
            self.store.add(user, item, domain, event.time, shown=event.shown, happened=counted)
            if happened[positive] and item > 0:
                self._history.add(user, event.time, {"item": item})
            if event.shown and item > 0:
                self._shown.add(user, item, event.time)

    def recount(self) -> None:
        """Bring statistics up to what was recorded."""
        if self.store.since.stale:
            self.store.recount()

    def withdraw(self, items: Sequence[str]) -> None:
        """These items are no longer shown."""
        for item in items:
            if row := self._ids["item"].row(item):
                self.available[row] = False

    def users(self, most: int) -> list[str]:
        """Ids of users with a history."""
        rows = np.unique(self._history.columns["user"][: 50 * most])
        return [self._ids["user"].name(int(row)) for row in rows[rows > 0][:most]]

    def explain(self, trace: Trace) -> dict[str, Any]:
        return explanation.explain(self, trace)

    def why(self, trace: Trace, item: str) -> dict[str, Any]:
        return explanation.why(self, trace, item)

    @staticmethod
    def iso(moment: int) -> str:
        """A time in µs as ISO 8601."""
        return datetime.fromtimestamp(moment / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def row(self, side: str, name: str) -> int:
        """The row of a "user" or an "item", 0 for one that is not in the tables."""
        return self._ids[side].row(name)

    def name_of(self, side: str, row: int) -> str:
        return self._ids[side].name(row)

    def facts(self, side: str, row: int) -> dict[str, Any]:
        """What the catalogue says of a user or an item; nothing of one who came later."""
        table = self._facts.users if side == "user" else self._facts.items
        if not 0 < row < len(table):
            return {}
        told = table.slice(row, 1).to_pylist()[0]
        return {
            name: explanation.plain(value) for name, value in told.items() if name != f"{side}_id" and value is not None
        }

    def history(self, user: int, moment: int) -> tuple[npt.NDArray[np.int32], Integers]:
        """Items and times (µs) of what a user took before a moment, oldest first."""
        end, length = self._history.find(user, moment) if user else (0, 0)
        return tuple(self._history.columns[name][end - length : end] for name in ("item", "time"))  # type: ignore[return-value]

    def judge(self, trace: Trace, item: int, position: int) -> tuple[dict[str, float], float]:
        """The task scores that an item has for a trace's request, and their fusion at a place in the merge."""
        asked = [np.array([one]) for one in (trace.user, item, trace.domain, trace.question.time)]
        _, scores = self.score(*asked)
        fused = self._fused(scores, np.array([position]), asked[2], trace.question.parameters)
        told = fine.with_durations(scores, self.ranker.schema)[0].tolist()
        return dict(zip(self.ranker.schema.labels, told, strict=True)), float(fused[0])

    def score(
        self, user: Integers, item: Integers, domain: Integers, moment: Integers
    ) -> tuple[Rows, npt.NDArray[Any]]:
        """Features and probabilities (N, T) of rows, by their numbers."""
        rows = self.store.rows(user, item, domain, moment)
        return rows, fine.likely(fine.answers(self.ranker.model, self._encoder, rows, runs(user, moment)[1]))

    def check_parity(self, folder: Path) -> None:
        """Raise `InputError` where the scores or features are not those of batch scoring."""
        told = pl.read_parquet(folder / bundle.PARITY)
        user, item, domain, moment = (told[name].to_numpy() for name in ("user", "item", "domain", "time"))
        begins = runs(user, moment)[0]
        for begin, end in zip(begins, [*begins[1:], len(user)], strict=True):
            part = slice(begin, end)
            rows, scores = self.score(user[part], item[part], domain[part], moment[part])
            for what, ours in (("scores", scores), ("numbers", rows.numbers)):
                theirs = told[what][part].to_numpy()
                if not np.allclose(ours, theirs, rtol=bundle.TOLERANCE, atol=bundle.TOLERANCE):
                    names = (
                        self.ranker.schema.labels if what == "scores" else [n.name for n in self.store.schema.numbers]
                    )
                    off = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
                    worst = names[int(off.max(axis=0).argmax())]
                    raise InputError(
                        f"{folder}: {worst} is off by up to {off.max():.3g} from batch scoring; make the bundle anew"
                    )

    def _warm_up(self) -> None:
        """Answer once what nobody asked: first calls take long, in every thread anew."""
        for user in ("", *self.users(WARM_UPS)):
            asked = Question(user, user, self.domains[0], self.end, 1, self.parameters({}), {}, {})
            self._answer([asked], asked.parameters)

    def _row(self, user: str, *, new: bool = False) -> int:
        """The number of a user: 0 for one who is unknown, and of whom nothing was recorded."""
        if row := self._ids["user"].row(user):
            return row
        if user in self._new or not new:
            return self._new.get(user, 0)
        first = len(self.store.users["code_user_id"]) - self.config.serve.live_users
        if len(self._new) < self.config.serve.live_users:
            row = first + len(self._new)
        else:
            row = self._new.pop(next(iter(self._new)))
            for strips in (*self.store.strips.values(), self._history):
                strips.forget(row)
        self._new[user] = row
        return row

    def _answer(self, questions: list[Question], parameters: Parameters) -> list[Answer]:
        begun = time.perf_counter()
        ms: dict[str, float] = {}
        degraded: list[str] = []

        def ended(stage: str) -> None:
            ms[stage] = 1e3 * (time.perf_counter() - begun) - sum(ms.values())

        user = np.array([self._row(one.user) for one in questions], np.int32)
        self._recollect(questions, user)
        domain = np.array([self.domains.index(one.domain) for one in questions], np.int16)
        moment = np.array([one.time for one in questions], np.int64)
        context = self._context(questions)
        requests = self._requests(user, domain, moment)
        askers = self._stages["coarse"].begin(lambda: self._askers(user, domain, moment))
        found, states = self._asked.ask(parameters.routes, requests, self._enough(user, parameters))
        self._fall_back(found, states, requests)
        degraded += [f"route:{route}" for route, (state, _) in states.items() if state in ("late", "failed")]
        ended("routes")
        pool = self._merge(found, user, parameters)
        ended("merge")

        vectors = self._stages["coarse"].end(askers)
        cheap = None if vectors is None else self._coarse(pool, vectors)
        if cheap is None:
            degraded.append("coarse")
        worth = -pool.position if cheap is None else cheap
        kept = np.flatnonzero(rank_within(worth, pool.request) <= parameters.keep)
        ended("coarse")

        ranked = self._stages["fine"].run(lambda: self._fine(pool, kept, user, domain, moment, context, parameters))
        if ranked is None:
            degraded.append("fine")
        ended("fine")

        answers = []
        for row, question in enumerate(questions):
            mine = slice(*np.searchsorted(pool.request, [row, row + 1]).tolist())
            seen = slice(*np.searchsorted(kept, [mine.start, mine.stop]).tolist())
            own = kept[seen] - mine.start
            trace = Trace(
                question=question,
                user=int(user[row]),
                domain=int(domain[row]),
                found={route: Found(one.items[row], one.scores[row]) for route, one in found.items()},
                states=states,
                exposed=pool.exposed[pool.exposed_request == row],
                merged=pool.item[mine],
                giver=pool.giver[mine],
                coarse=None if cheap is None else cheap[mine],
                kept=own,
                scores=None if ranked is None else ranked[0][seen],
                fused=None if ranked is None else ranked[1][seen],
                final=np.zeros(0, np.int64),
                degraded=list(degraded),
                ms=ms,
            )
            answers.append(replace(trace, final=self._final(trace, parameters)))
        ended("final")
        ms["total"] = sum(ms.values())
        return [Answer(self._body(trace), trace, self._left(trace)) for trace in answers]

    def _requests(self, user: npt.NDArray[np.int32], domain: npt.NDArray[np.int16], moment: Integers) -> Requests:
        runs = [self._history.find(one, when) for one, when in zip(user.tolist(), moment.tolist(), strict=True)]
        runs = [(end, length if one else 0) for one, (end, length) in zip(user.tolist(), runs, strict=True)]
        columns = self._history.columns
        return Requests(
            user=user,
            domain=domain,
            time=moment,
            items=np.concatenate([columns["item"][end - length : end] for end, length in runs]),
            times=np.concatenate([columns["time"][end - length : end] for end, length in runs]),
            offsets=np.cumsum([0, *(length for _, length in runs)]),
        )

    def _enough(self, user: npt.NDArray[np.int32], parameters: Parameters) -> int:
        """How many items each route is asked for: more than it may give, since the filter will take what was shown."""
        most = parameters.per_route
        return most + min(most, self._shown.most(user) + SPARE)

    def _fall_back(self, found: dict[str, Found], states: dict[str, tuple[str, float]], requests: Requests) -> None:
        """Where no route found anything, take what was found for a stranger when the bundle was opened."""
        empty = ~np.any([(one.items != NOTHING).any(axis=1) for one in found.values()], axis=0)
        if empty.any():
            items = np.where(empty[:, None], self._strangers.items[requests.domain], NOTHING)
            found[FALLBACK] = Found(items, self._strangers.scores[requests.domain])
            states[FALLBACK] = ("ok", 0.0)

    def _for_strangers(self) -> Found:
        """What the first of the routes that know something for everybody finds in each domain."""
        domains = len(self.domains)
        nobody = Requests(
            user=np.zeros(domains, np.int32),
            domain=np.arange(domains, dtype=np.int16),
            time=np.full(domains, self.end),
            items=np.zeros(0, np.int32),
            times=np.zeros(0, np.int64),
            offsets=np.zeros(domains + 1, np.int64),
        )
        for route in self._routes.values():
            found = route.recall(nobody, self.config.recall.per_route)
            if (found.items != NOTHING).any(axis=0).all() and found.items.size:
                return found
        return nothing(domains)

    def _merge(self, found: dict[str, Found], user: npt.NDArray[np.int32], parameters: Parameters) -> _Pool:
        request, item, place, _ = merge.packed(list(found.values()))
        there = self.available[item]
        request, item, place = request[there], item[there], place[there]
        exposed = self._shown.contains(user[request], item)
        taken, taken_request = item[exposed], request[exposed]
        request, item, place = request[~exposed], item[~exposed], place[~exposed]
        rank = merge.places(request * len(found) + place)
        some = rank <= parameters.per_route
        request, item, place, rank = request[some], item[some], place[some], rank[some]
        limits = merge.limits_of(list(found), dict(parameters.quota))
        kept, position = merge.snake(request, item, place, rank, limits=limits, size=parameters.merged)
        return _Pool(
            request=request[kept],
            item=item[kept],
            giver=place[kept],
            position=position,
            exposed=taken,
            exposed_request=taken_request,
        )

    @torch.inference_mode()
    def _askers(
        self,
        user: npt.NDArray[np.int32],
        domain: npt.NDArray[np.int16],
        moment: Integers,
    ) -> npt.NDArray[np.float32]:
        """The coarse ranker's vectors (R, D) of those who ask."""
        batch = self._encoder.users(user, domain, moment, self.store.pointers(user, moment))
        batch["numbers"] = torch.from_numpy(self.store.askers(user, domain, moment))
        return _finite(self._student.model.user(batch).numpy())

    def _coarse(self, pool: _Pool, askers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores (N,) of the merged."""
        items = np.take(self._vectors, pool.item, axis=0).astype(np.float32)
        scores = np.einsum("nd,nd->n", items, askers[pool.request])
        return np.asarray(scores - self._student.prior * np.log(pool.position), np.float32)

    def _fine(
        self,
        pool: _Pool,
        kept: Integers,
        user: npt.NDArray[np.int32],
        domain: npt.NDArray[np.int16],
        moment: Integers,
        context: dict[str, npt.NDArray[np.int32]],
        parameters: Parameters,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Task scores (K, T) and their fusion (K,): a part of the candidates at a time, which stays in the processor's
        cache, and several where there are threads for them."""
        owner = pool.request[kept]

        def answered(part: Integers) -> tuple[npt.NDArray[np.float32], torch.Tensor]:
            own = owner[part]
            given = {name: codes[own] for name, codes in context.items()}
            rows = self.store.rows(user[own], pool.item[kept[part]], domain[own], moment[own], given)
            asker = np.unique(own, return_inverse=True)[1]
            return rows.numbers, fine.answers(self.ranker.model, self._encoder, rows, asker)

        parts = np.array_split(np.arange(len(kept)), max(self.settings.threads, -(-len(kept) // AT_ONCE)))
        each = map if len(parts) == 1 else self._rankers.map
        numbers, logits = zip(*each(answered, parts), strict=True)
        scored = torch.cat(logits)
        if parameters.explore:
            drawn = explore.shift(self._posterior, np.concatenate(numbers), owner, self._random)
            scored = scored + torch.from_numpy(drawn)
        scores = _finite(fine.likely(scored))
        return fine.with_durations(scores, self.ranker.schema), self._fused(
            scores, pool.position[kept], domain[owner], parameters
        )

    def _fused(
        self, scores: npt.NDArray[np.float32], position: Integers, domain: npt.NDArray[np.int16], parameters: Parameters
    ) -> npt.NDArray[np.float64]:
        weights = self.ranker.weights.copy()
        for task, factor in parameters.fusion:
            weights[:, self.ranker.schema.labels.index(task)] *= factor
        shares = fine.with_durations(scores, self.ranker.schema, fine.HOUR)
        return fuse(with_recall(shares, position), domain, weights)

    def _final(self, trace: Trace, parameters: Parameters) -> Integers:
        """The places among the merged of what is shown, best first."""
        k = trace.question.k
        worth = -np.arange(len(trace.kept), dtype=np.float64)
        if trace.fused is not None:
            worth = trace.fused
        elif trace.coarse is not None:
            worth = trace.coarse[trace.kept].astype(np.float64)
        best = np.argsort(-worth, kind="stable")[: max(parameters.final, k)]
        order = trace.kept[best]
        if parameters.diversity == "none" or "content" not in self.store.items:
            return order[:k]
        score = worth[best] if trace.fused is None else np.log(worth[best])
        vectors = self.store.items["content"][trace.merged[order]]
        rerank, weight = RERANKERS[parameters.diversity], parameters.diversity_weight
        chosen = self._stages["final"].run(lambda: rerank(score, vectors, k, weight=weight))
        if chosen is None:
            trace.degraded.append("diversity")
            return order[:k]
        places: Integers = order[chosen]
        return places

    def _recollect(self, questions: list[Question], user: npt.NDArray[np.int32]) -> None:
        """Let the cache route know what was left behind for those who ask, but strangers."""
        if self._cache is not None:
            self._cache.since = {
                row: {self.domains.index(domain): left for domain, left in one.left.items()}
                for row, one in zip(user.tolist(), questions, strict=True)
                if row
            }

    def _left(self, trace: Trace) -> npt.NDArray[np.int32] | None:
        """What was ranked high and is not shown, for the user's next request."""
        if self._cache is None or trace.fused is None or not trace.user:
            return None
        order = trace.kept[np.argsort(-trace.fused, kind="stable")]
        left = order[~np.isin(order, trace.final)][:LEFT_BEHIND]
        return trace.merged[left].astype(np.int32)

    def _context(self, questions: list[Question]) -> dict[str, npt.NDArray[np.int32]]:
        """Codes (R,) of the context columns that the log has; 0 for what is not given or not known."""
        return {
            name: np.array([codes.get(_text(one.context.get(name)), 0) for one in questions], np.int32)
            for name, codes in self._contexts.items()
        }

    def _body(self, trace: Trace) -> dict[str, Any]:
        question = trace.question
        labels = self.ranker.schema.labels
        routes = list(trace.found)
        names = self._ids["item"].named(trace.merged[trace.final])
        givers = trace.giver[trace.final].tolist()
        number = np.searchsorted(trace.kept, trace.final)
        nothing = [None] * len(number)
        fused = nothing if trace.fused is None else trace.fused[number].tolist()
        scores = nothing if trace.scores is None else trace.scores[number].tolist()
        items = [
            {
                "item": name,
                "rank": rank,
                "score": score,
                "route": routes[giver],
                "scores": None if tasks is None else dict(zip(labels, tasks, strict=True)),
            }
            for rank, (name, giver, score, tasks) in enumerate(zip(names, givers, fused, scores, strict=True), 1)
        ]
        return {
            "request": question.request,
            "bundle": self.name,
            "user": question.user,
            "domain": question.domain,
            "known_user": trace.user > 0,
            "time": self.iso(question.time),
            "items": items,
            "degraded": trace.degraded,
            "arms": dict(question.arms),
            "ms": {name: round(value, 3) for name, value in trace.ms.items()},
        }


@dataclass(frozen=True)
class _Pool:
    """The merged items of several requests, by request and place in the merge (`position`, from 1), and those that the
    exposure filter took."""

    request: Numbers
    item: Numbers
    giver: Numbers
    position: Integers
    exposed: Numbers
    exposed_request: Numbers


def _finite(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.isfinite(scores).all():
        raise ValueError("scores that are not finite")
    return scores


def _contexts(features: Path) -> dict[str, dict[str, int]]:
    """Of each context column that is the log's own, the codes of its values."""
    vocabulary = pl.read_parquet(features / "vocabulary.parquet", columns=["field", "value", "code"])
    table: dict[str, dict[str, int]] = {}
    for name, value, code in vocabulary.iter_rows():
        if name not in BUILT_IN_CONTEXT:
            table.setdefault(name, {})[str(value)] = int(code)
    return table


def _text(value: str | float | None) -> str:
    return "" if value is None else str(canonical(pl.Series([value]))[0])
