"""Paths of codes as a trie in arrays, and the beam search that keeps to it.

Sorted, the paths below a node lie next to each other, and so do its children on the next level: a node is the number
of its first path among the starts of its level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.recall.route import NOTHING, Found, best

LogShares = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Trie:
    """P different paths (P, depth), ascending. Level l has `starts[l]`, the first path of each of its nodes, and
    `children[l]`, the number on level l + 1 of each node's first child, with one more at the end."""

    codes: npt.NDArray[np.integer]
    starts: list[npt.NDArray[np.int64]]
    children: list[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer]) -> Trie:
        """Raises ValueError when the paths are not different and ascending."""
        paths, depth = codes.shape
        new = np.zeros((paths, depth + 1), bool)
        new[:1] = True
        differ = codes[1:] != codes[:-1]
        new[1:, 1:] = np.logical_or.accumulate(differ, axis=1)
        first = np.argmax(differ, axis=1) if depth else np.zeros(len(differ), np.int64)
        row = np.arange(len(differ))
        if not (new[:, -1].all() and (codes[1:][row, first] > codes[:-1][row, first]).all()):
            raise ValueError("paths have to be different and ascending")
        starts = [np.flatnonzero(new[:, level]) for level in range(depth + 1)]
        children = [np.searchsorted(starts[level + 1], np.append(starts[level], paths)) for level in range(depth)]
        return cls(codes, starts, children)

    def search(self, log_shares: LogShares, requests: int, width: int) -> Found:
        """The likeliest `width` paths of each request, best first, as far as a beam of `width` finds them: numbers of
        paths, and the sums of the logarithms of their codes' shares.

        `log_shares` is asked once a level: it is given codes so far (R, W, level) and returns the logarithm of every
        next code's share (R, W, K). A beam as wide as the widest level misses nothing.
        """
        if not len(self) or not requests:
            return Found(np.full((requests, 0), NOTHING, np.int32), np.zeros((requests, 0), np.float32))
        found = Found(np.zeros((requests, 1), np.int32), np.zeros((requests, 1), np.float32))
        for level, children in enumerate(self.children):
            shares = log_shares(self.codes[self.starts[level][found.items], :level].astype(np.int64))
            row, column = np.nonzero(found.items != NOTHING)
            node = found.items[row, column]
            child, parent = ranges(children[node], children[node + 1])
            row, column = row[parent], column[parent]
            code = self.codes[self.starts[level + 1][child], level]
            score = found.scores[row, column] + shares[row, column, code]
            found = best(row, child, score, requests=requests, k=width)
        return found


def ranges(
    begin: npt.NDArray[np.integer], end: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of N ranges, one after the other, and the range of each."""
    count = end - begin
    owner = np.repeat(np.arange(len(begin)), count)
    before = np.cumsum(count) - count
    return np.arange(len(owner)) + np.asarray(begin - before, np.int64)[owner], owner


def grouped(paths: npt.NDArray[np.integer], of: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """The different ones of N paths, in order (P, depth), and what lies on each, `of` (N,): as offsets (P + 1,) and
    members, in order."""
    order = np.lexsort((of, *paths.T[::-1]))
    distinct, first = np.unique(paths[order], axis=0, return_index=True)
    return distinct, np.append(first, len(order)), of[order]


def stacked(parts: list[Found]) -> Found:
    """What was found for some requests after others, as wide as the widest."""
    width = max((part.items.shape[1] for part in parts), default=0)
    gaps = [((0, 0), (0, width - part.items.shape[1])) for part in parts]
    empty = Found(np.zeros((0, width), np.int32), np.zeros((0, width), np.float32))
    items = [np.pad(part.items, gap, constant_values=NOTHING) for part, gap in zip(parts, gaps, strict=True)]
    scores = [np.pad(part.scores, gap) for part, gap in zip(parts, gaps, strict=True)]
    return Found(np.concatenate([empty.items, *items]), np.concatenate([empty.scores, *scores]))
