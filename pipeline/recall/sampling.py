"""R18: which items a row of recall's training is set against.

Positives are what users engaged with, those of hot items thinned out. Easy negatives are drawn from the whole
catalogue with p ∝ (count + 1)^¾; hard ones are what an earlier run had recalled for the row's user and then cut by
ranking, half and half where there is such a run (Huang et al., Embedding-based Retrieval in Facebook Search, KDD 2020,
§6.1). What was shown and not engaged with is no negative: it had been recalled, rightly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError

FLATTEN = 0.75
HOT = 10.0
HARD = 0.5


@dataclass(frozen=True)
class Cut:
    """What ranking cut of the users' candidates, packed: user u's items are `items[offsets[u]:offsets[u + 1]]`."""

    items: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, users: npt.NDArray[np.integer], items: npt.NDArray[np.integer], size: int) -> Cut:
        """From pairs (C,) of user numbers below `size` and items."""
        order = np.lexsort((items, users))
        counts = np.bincount(users, minlength=size)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        return cls(torch.from_numpy(items[order].astype(np.int64)), offsets)

    @classmethod
    def read(cls, latest: Path, store: FeatureStore) -> Cut:
        """From the lists of an earlier run, whose `latest.json` this is: all that was not shown in the end, but for
        what the log before the validation slice or the users' histories hold. Users and items are matched by their
        raw ids; requests from after the begin of the validation slice are left out.

        Raises `InputError` when the file is not there or no request is early enough.
        """
        if not latest.exists():
            raise InputError(f"{latest}: no such file; `earlier` is the latest.json of a finished run")
        folders = {name: Path(path) for name, path in json.loads(latest.read_text())["folders"].items()}
        moment = store.slices["validation"]
        asked = pl.scan_parquet(folders["recall"] / "requests.parquet").filter(pl.col("time") <= moment)
        asked = asked.filter(pl.col("user") > 0).select("request", "user")
        ranked = pl.scan_parquet(folders["ranked"] / "ranked.parquet").filter(~pl.col("shown"))
        pairs = ranked.select("request", "item").join(asked, on="request").select("user", "item").collect()
        if pairs.is_empty():
            raise InputError(
                f"{latest}: no request of that run is from before this validation slice; name an older run"
            )
        for side in ("user", "item"):
            pairs = pairs.with_columns(_renumbered(pairs[side], folders["features"], store.folder, side))
        held = [store.columns(["user", "item", "time"]), *store.behaviours.values()]
        known = pl.concat([pl.DataFrame({name: one[name] for name in ("user", "item", "time")}) for one in held])
        known = known.filter(pl.col("time") < moment).select(pl.col("user", "item").cast(pl.Int64))
        pairs = pairs.drop_nulls().unique().join(known, on=["user", "item"], how="anti")
        return cls.of(pairs["user"].to_numpy(), pairs["item"].to_numpy(), len(store.users["code_user_id"]))

    def draw(self, users: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One item for each of N users, and which of them have any: both (N,)."""
        begin, count = self.offsets[users], self.offsets[users + 1] - self.offsets[users]
        place = (torch.rand(len(users), generator=generator, dtype=torch.float64) * count).long()
        return self.items[(begin + place).clamp(max=len(self.items) - 1)], count > 0

    def shares(self, users: Tensor, weight: Tensor, size: int) -> Tensor:
        """How often each of `size` items is drawn for one of N users, taken by `weight` (N,): it sums to the share of
        the weight that lies on users who have any."""
        of_user = torch.zeros(len(self.offsets) - 1, dtype=torch.float64).index_add(0, users, weight / weight.sum())
        count = self.offsets.diff()
        each = torch.repeat_interleave(of_user / count.clamp(min=1), count)
        return torch.zeros(size, dtype=torch.float64).index_add(0, self.items, each)


@dataclass(frozen=True)
class Sampler:
    """How items come into a batch: `positive` (I,) are their shares among the rows' own items, `easy` (I,) among the
    easy negatives and `negative` (I,) among all drawn; `keep` (I,) is the chance that a row with this item is used in
    an epoch. Of the negatives of users with a `cut` the part `hard` is from there."""

    positive: Tensor
    easy: Tensor
    negative: Tensor
    keep: Tensor
    cut: Cut | None = None
    hard: float = HARD

    @classmethod
    def of(
        cls,
        items: npt.NDArray[np.integer],
        catalogue: npt.NDArray[np.integer],
        size: int,
        *,
        users: npt.NDArray[np.integer] | None = None,
        cut: Cut | None = None,
        hard: float = HARD,
    ) -> Sampler:
        """From the items of the positive rows and the items that may be drawn, all numbers below `size`, and the rows'
        users where there is a `cut`.

        A row whose item has more than ten times the mean share is kept with word2vec's probability √(t/f) + t/f, t
        being that bound (Mikolov et al. 2013, in the form of their code).
        """
        count = torch.from_numpy(np.bincount(items, minlength=size)).double()
        relative = HOT * count.sum() / max(len(catalogue), 1) / count
        keep = (relative.sqrt() + relative).clamp(max=1.0)
        kept = count * keep.nan_to_num(0.0)
        easy = torch.zeros(size, dtype=torch.float64)
        known = torch.tensor(catalogue)
        easy[known] = (count[known] + 1) ** FLATTEN
        easy /= easy.sum()
        negative = easy
        if cut is not None and users is not None:
            asking = torch.from_numpy(users).long()
            from_cut = cut.shares(asking, keep[torch.from_numpy(items).long()], size)
            negative = (1 - hard * from_cut.sum()) * easy + hard * from_cut
        return cls(kept / kept.sum(), easy, negative, keep, cut, hard)

    def draw(self, users: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The numbers of `count` negatives, dealt in turn to the rows of the B `users`."""
        item = torch.multinomial(self.easy, count, replacement=True, generator=generator)
        if self.cut is None or not len(self.cut.items):
            return item
        of_cut, there = self.cut.draw(users[torch.arange(count) % len(users)], generator)
        chosen = torch.rand(count, generator=generator, dtype=torch.float64) < self.hard
        return torch.where(there & chosen, of_cut, item)

    def log_q(self, item: Tensor, rows: int, drawn: int) -> Tensor:
        """Log of how often each item is expected among the own items of so many rows and so many drawn ones.

        One share for all kinds of samples, that of their mixture (the balance heuristic, Veach & Guibas 1995): a rare
        item that happens to be a row's own does not count for a thousand, and a hard negative weighs more with the
        user whom it was cut for only, not by how often ranking cuts it.
        """
        expected = rows * self.positive[item] + drawn * self.negative[item]
        return expected.clamp(min=torch.finfo(torch.float64).tiny).log().float()


def _renumbered(numbers: pl.Series, before: Path, now: Path, side: str) -> pl.Series:
    """Numbers (int64) in the features folder `now` of those of a folder `before`; null for unknown ids."""
    if before.resolve() == now.resolve():
        return numbers.cast(pl.Int64)
    raw = f"{side}_id"
    old, new = (pl.read_parquet(folder / f"{side}s.parquet", columns=[raw])[raw] for folder in (before, now))
    index = pl.DataFrame({raw: new}).with_row_index("number")
    found = pl.DataFrame({raw: old.gather(numbers)}).join(index, on=raw, how="left", maintain_order="left")
    return found["number"].cast(pl.Int64).alias(side)
