"""What statistics are counted by: one int64 key a row for an entity such as "user", "author_id" or "item+domain"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt

from pipeline.features.timeline import Integers


@dataclass(frozen=True)
class Entities:
    """The keys of users and items by row number, 0 for unknown: `users["segment"]` (users + 1,), `items["item"]`, …

    The key of a user or an item itself is its row number.
    """

    users: Mapping[str, npt.NDArray[np.integer]]
    items: Mapping[str, npt.NDArray[np.integer]]
    domains: int

    def keys(
        self,
        entity: str,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
    ) -> Integers:
        """The key of each row: (N,)."""

        def part(name: str) -> tuple[Integers, int]:
            if name == "domain":
                return np.asarray(domain, np.int64) + 1, self.domains + 1
            table, row = (self.users, user) if name in self.users else (self.items, item)
            return table[name][row].astype(np.int64), self._sizes[name]

        parts = [part(name) for name in entity.split("+")]
        return reduce(lambda keys, one: keys * one[1] + one[0], parts[1:], parts[0][0])

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: int(values.max()) + 1 for name, values in {**self.users, **self.items}.items()}


def is_of_one_user(entity: str) -> bool:
    """Whether all events of a key are one user's, so that a part of the users can be counted by itself."""
    return "user" in entity.split("+")
