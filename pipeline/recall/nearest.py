"""The nearest of every row by what it shares with others: exact, compiled by Numba, in the memory of a row a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from numba import njit

Measure = Literal["cosine", "jaccard"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

PIECES = 64
LAST = 2**31 - 1


@dataclass(frozen=True)
class Taken:
    """Who took what, each pair once, both ways round: user u's items are `items[of_user[u]:of_user[u + 1]]` and
    item i's users `users[of_item[i]:of_item[i + 1]]`, in ascending order."""

    items: npt.NDArray[np.int32]
    of_user: npt.NDArray[np.int32]
    users: npt.NDArray[np.int32]
    of_item: npt.NDArray[np.int32]

    @classmethod
    def of(cls, users: Integers, items: Integers, size: int) -> Taken:
        """From N pairs of a user and an item below `size`."""
        shape = int(users.max(initial=0)) + 1, size
        by_user = sp.csr_array((np.ones(len(users), np.int8), (users, items)), shape=shape)
        by_item = by_user.T.tocsr()
        return cls(by_user.indices, by_user.indptr, by_item.indices, by_item.indptr)

    @property
    def turned(self) -> Taken:
        """With users as items and items as users."""
        return Taken(self.users, self.of_item, self.items, self.of_user)


def nearest_items(
    taken: Taken, *, weight: Floats, allowed: npt.NDArray[np.bool_], neighbours: int, measure: Measure
) -> sp.csr_array:
    """The (I, I) matrix whose row i holds the similarity to i of its nearest `allowed` (I,) items, best first.

    The users that two items have in common count `weight` (U,). Their sum is divided by the root of the product of the
    numbers of users, or ("jaccard") by the sum over the users of either.
    """
    user = np.repeat(np.arange(len(weight)), np.diff(taken.of_user))
    kept = allowed[taken.items]
    right = taken.items[kept]
    of_user = np.concatenate([[0], np.cumsum(np.bincount(user[kept], minlength=len(weight)))])
    if measure == "cosine":
        total = np.maximum(np.diff(taken.of_item), 1.0) ** -0.5
    else:
        total = np.bincount(taken.items, weight[user], minlength=len(allowed)).astype(np.float64)
    return in_pieces(
        _common,
        len(allowed),
        neighbours,
        taken.users,
        taken.of_item,
        right,
        of_user,
        weight,
        total,
        measure == "cosine",
    )


def in_pieces(kernel: Callable[..., None], rows: int, neighbours: int, *arguments: Any) -> sp.csr_array:
    """The (rows, rows) matrix of what a kernel finds, best first; ties go to the lower column.

    `kernel(begin, end, *arguments, keys)` fills rows `begin` to `end` of `keys` (rows, neighbours) through `hold`. It
    runs in as many threads as torch does; a row's result does not depend on them.
    """
    keys = np.zeros((rows, neighbours), np.int64)
    edges = np.linspace(0, rows, min(rows, PIECES) + 1).astype(np.int64)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda begin, end: kernel(begin, end, *arguments, keys), edges[:-1], edges[1:]))
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    there = keys > 0
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    values, columns = unpacked(keys[there])
    return sp.csr_array((values, columns, indptr), shape=(rows, rows))


def unpacked(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """The values and the columns of what `hold` keeps; where it keeps nothing, 0 and the last column there could be."""
    return (keys >> 32).astype(np.int32).view(np.float32), (LAST - (keys & LAST)).astype(np.int32)


@njit(nogil=True, cache=True)
def _common(begin, end, users, of_item, items, of_user, weight, total, cosine, keys):  # type: ignore[no-untyped-def]
    size = len(of_item) - 1
    shared = np.zeros(size)
    met = np.empty(size + 1, np.int32)
    for row in range(begin, end):
        count = 0
        for at in range(of_item[row], of_item[row + 1]):
            user = users[at]
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                met[count] = item
                count += shared[item] == 0.0
                shared[item] += weight[user]
        shared[row] = 0.0
        heap = keys[row]
        for place in range(count):
            item = met[place]
            if cosine:
                value = shared[item] * total[row] * total[item]
            else:
                value = shared[item] / (total[row] + total[item] - shared[item])
            shared[item] = 0.0
            hold(heap, value, item)


@njit(nogil=True, cache=True, inline="always")
def hold(heap, value, column):  # type: ignore[no-untyped-def]
    """Keep a positive value and its column if it is among the best so far.

    `heap` (K,) begins with zeros; its root is the worst of what it holds. An entry is one key: the bits of the value
    as float32, which order as positive values do, then those of the column, the lower the better."""
    key = np.int64(np.float32(value).view(np.int32)) << 32 | np.int64(LAST - column)
    if value > 0.0 and key > heap[0]:
        replace_worst(heap, key)


@njit(nogil=True, cache=True)
def replace_worst(heap, key):  # type: ignore[no-untyped-def]
    place, below = 0, 1
    while below < len(heap):
        if below + 1 < len(heap) and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= key:
            break
        heap[place] = heap[below]
        place, below = below, 2 * below + 1
    heap[place] = key
