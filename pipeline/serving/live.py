"""The feature store as of now: what a bundle holds, and what has happened since, which counts with the next request.

Features are those of `FeatureStore`, and so are their values. What differs is how they are found: a request has few
rows of few users, so that a user's events are walked through and a key's are searched, where a batch sorts all its
questions. Neither needs an index over the log, so that a bundle is opened in moments.

A behaviour's events lie by user, oldest first. Where a user did something more, his last events are copied behind the
table, into a strip with room for more, so that a history is one run of rows as before, and packed like any other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.features import match, statistics
from pipeline.features.match import NO_GAP, SECOND, SECONDS
from pipeline.features.store import Columns, Events, FeatureStore, read_columns
from pipeline.features.timeline import Integers
from pipeline.serving import tallies
from pipeline.serving.tallies import Since, Tally


class Strips:
    """A table of events by user and time to which more are added: `columns` by row, those of `table` first.

    `length` is how many events of a user are looked at; `users` of them have a strip at most, those with the latest
    events; for others the table's own events stand.
    """

    def __init__(self, table: Events, *, length: int, users: int) -> None:
        self.length = length
        self.forgotten = 0
        self._size = len(table["user"])
        self._users = np.asarray(table["user"])
        self._room = 2 * length
        spare = users * self._room
        # zeros lie in memory only once they are written to, so that strips that nobody has take none
        self.columns: Columns = {name: np.zeros(self._size + spare, values.dtype) for name, values in table.items()}
        for name, values in table.items():
            self.columns[name][: self._size] = values
        self._runs: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._strips: dict[int, int] = {}
        self._free = list(range(users))

    def run(self, user: int) -> tuple[int, int]:
        """The rows [begin, end) of the user's events that are known."""
        if (live := self._runs.get(user)) is not None:
            return live
        sought = self._users.dtype.type(user)
        return int(self._users.searchsorted(sought)), int(self._users.searchsorted(sought, "right"))

    def find(self, user: int, time: int) -> tuple[int, int]:
        """End and length of the user's history strictly before `time` (µs): rows [end - length, end)."""
        begin, end = self.run(user)
        end = begin + int(self.columns["time"][begin:end].searchsorted(time))
        return end, min(end - begin, self.length)

    def add(self, user: int, time: int, event: Mapping[str, int]) -> None:
        """Add an event of a user at its place in time; `event` has the other columns' values."""
        begin, end = self._with_room(user)
        times = self.columns["time"]
        place = begin + int(times[begin:end].searchsorted(time, "right"))
        for name, column in self.columns.items():
            column[place + 1 : end + 1] = column[place:end].copy()
            column[place] = user if name == "user" else time if name == "time" else event[name]
        self._runs[user] = (begin, end + 1)
        self._runs.move_to_end(user)

    def _with_room(self, user: int) -> tuple[int, int]:
        """The user's run in a strip, moved there if need be, with a free row behind it."""
        begin, end = self.run(user)
        if user in self._strips and end < self._begin(user) + self._room:
            return begin, end
        if user not in self._strips:
            self._strips[user] = self._free.pop() if self._free else self._strips.pop(self._oldest())
        kept = min(end - begin, self.length)
        target = self._begin(user)
        for column in self.columns.values():
            column[target : target + kept] = column[end - kept : end].copy()
        return target, target + kept

    def forget(self, user: int) -> None:
        """Give up what was added of a user."""
        self._runs.pop(user, None)
        if (strip := self._strips.pop(user, None)) is not None:
            self._free.append(strip)

    def _begin(self, user: int) -> int:
        return self._size + self._strips[user] * self._room

    def _oldest(self) -> int:
        self.forgotten += 1
        return self._runs.popitem(last=False)[0]


@dataclass(frozen=True, eq=False)
class LiveStore(FeatureStore):
    """A store whose `behaviours` are those of `strips`, whose events were counted into `tallies`, and `since`."""

    strips: dict[str, Strips] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    since: Since = field(default_factory=lambda: Since(()))

    @classmethod
    def of(cls, folder: Path, *, users: int) -> LiveStore:
        """A bundle's features, with room for new events of so many users."""
        plain = FeatureStore.open(folder)
        lengths = {sequence.name: plain.recipe.lengths[sequence.name] for sequence in plain.schema.sequences}
        strips = {
            name: Strips(read_columns(folder / f"behaviour_{name}.parquet"), length=length, users=users)
            for name, length in lengths.items()
        }
        return cls(
            **{**vars(plain), "behaviours": {name: one.columns for name, one in strips.items()}},
            strips=strips,
            tallies={entity: Tally.load(folder / "tallies" / entity) for entity in plain.recipe.statistics},
            since=Since(plain.recipe.rates),
        )

    def history(
        self, behaviour: str, user: npt.NDArray[np.integer], time: Integers
    ) -> tuple[Integers, npt.NDArray[np.int32]]:
        strip = self.strips[behaviour]
        new, run = runs(user, time)
        found = [strip.find(*who) for who in zip(user[new].tolist(), time[new].tolist(), strict=True)]
        ends, lengths = np.array(found, np.int64).reshape(-1, 2).T
        return ends[run], lengths[run].astype(np.int32)

    def add(self, user: int, item: int, domain: int, time: int, *, shown: bool, happened: Mapping[str, bool]) -> None:
        """Add an event by its row numbers; `happened` says it of tasks, and of behaviours by `behaviour_<name>`."""
        rates = [bool(happened.get(rate)) for rate in self.recipe.rates]
        self.since.add(user, item, domain, time, shown, rates)
        for name, strip in self.strips.items():
            if happened.get(f"behaviour_{name}"):
                strip.add(user, time, {"item": item, "domain": domain})

    def recount(self) -> None:
        """Bring the statistics up to what was added."""

        def keys(entity: str, events: Columns) -> Integers:
            return self.entity_keys(entity, events["user"], events["item"], events["domain"])

        self.since.recount(keys, self.recipe.statistics)

    @cached_property
    def _lags(self) -> Integers:
        lengths = [statistics.window_length(window) for window in (*self.recipe.windows, statistics.ALL)]
        return np.array([-1 if length is None else length for length in lengths], np.int64)

    def askers(
        self,
        user: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
    ) -> npt.NDArray[np.float32]:
        """The numbers (N, M) of users as of `time`: those of users and of the context, and 0 for others."""
        numbers = np.zeros((len(user), len(self.schema.numbers)), np.float32)
        for place, number in enumerate(self.schema.numbers):
            if (own := self.users.get(f"number_{number.name}")) is not None:
                numbers[:, place] = own[user]
        nobody = np.zeros_like(user)
        entities = tuple(self._places_of_users)
        encoded = self._encoded(entities, user, nobody, domain, time)
        for place, columns in zip(self._places_of_users.values(), encoded, strict=True):
            numbers[:, place : place + columns.shape[1]] = columns
        return numbers

    @cached_property
    def _places_of_users(self) -> dict[str, int]:
        """The first column of each entity that is of users or of the context."""
        names = [number.name for number in self.schema.numbers]
        windows, rates = self.recipe.windows, self.recipe.rates
        first = {entity: statistics.names(entity, windows, rates)[0] for entity in self.recipe.statistics}
        places = {entity: names.index(name) for entity, name in first.items()}
        return {entity: at for entity, at in places.items() if self.schema.numbers[at].role in ("user", "context")}

    def _statistics(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
    ) -> Iterator[npt.NDArray[np.float32]]:
        yield from self._encoded(self.recipe.statistics, user, item, domain, time)

    def _encoded(
        self,
        entities: tuple[str, ...],
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Of each of these entities its columns (N, …)."""
        for entity in entities:
            keys = self.entity_keys(entity, user, item, domain)
            yield tallies.features(
                self.tallies[entity], self.since.tally(entity), keys, time, self._lags, self._shrunk[entity]
            )

    @cached_property
    def _shrunk(self) -> dict[str, npt.NDArray[np.float64]]:
        """The priors (T, 2) of each entity."""
        return {entity: np.array(self._priors(entity)).reshape(-1, 2) for entity in self.recipe.statistics}

    def _matches(
        self,
        name: str,
        user: npt.NDArray[np.integer],  # noqa: ARG002
        item: npt.NDArray[np.integer],
        time: Integers,
        ends: Integers,
        lengths: npt.NDArray[np.int32],
    ) -> Iterator[npt.NDArray[np.float32]]:
        table, keys = self.behaviours[name], tuple(self._item_keys[one] for one in self.recipe.attributes)
        if keys:
            found = np.empty((len(item), 2 * len(keys)), np.float32)
            _match(item, time, ends, lengths, table["item"], table["time"], keys, found)
            yield found
        if self.recipe.match_content:
            content = self.items["content"]
            yield match.similarity_to_sum(self._summed(table["item"], content, ends, lengths), content[item])

    @staticmethod
    def _summed(
        events: npt.NDArray[np.int32], content: npt.NDArray[np.float32], ends: Integers, lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32]:
        """The sums (Q, d) of the histories' content in fixed point, once for rows that follow each other with one."""
        new, run = runs(ends, lengths)
        sums = np.zeros((len(new), content.shape[1]), np.int32)
        for row, (end, length) in enumerate(zip(ends[new].tolist(), lengths[new].tolist(), strict=True)):
            sums[row] = match.running_content(content[events[end - length : end]])[-1]
        return np.take(sums, run, axis=0)


def runs(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> tuple[Integers, Integers]:
    """Runs of rows (N,) with the same two numbers: where each begins (R,), and each row's run (N,)."""
    new = np.ones(len(first), bool)
    np.not_equal(first[1:], first[:-1], out=new[1:])
    new[1:] |= second[1:] != second[:-1]
    return np.flatnonzero(new), np.cumsum(new) - 1


@njit(nogil=True, cache=True)
def _match(item, times, ends, lengths, events, moments, keys, found):  # type: ignore[no-untyped-def]
    """`match.encode` of how many of a row's events have the item's key, and of the seconds since the newest of them."""
    for attribute in range(len(keys)):
        own = keys[attribute]
        for row in range(len(item)):
            value, count, gap = own[item[row]], 0, -1
            if value > 0:
                for event in range(ends[row] - 1, ends[row] - lengths[row] - 1, -1):
                    if own[events[event]] == value:
                        if count == 0:
                            gap = (times[row] - moments[event]) // SECOND
                        count += 1
            found[row, 2 * attribute] = math.log1p(count)
            found[row, 2 * attribute + 1] = NO_GAP if gap < 0 else math.log1p(gap / SECONDS)
