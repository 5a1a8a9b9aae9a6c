"""Published splits in text: a line a user, `user item item …`, numbers all.

`pairs` reads a split into train and test, of which nobody knows the order (Gowalla in the form of LightGCN, He et al.,
SIGIR 2020); `sequences` reads items in the order of time (Amazon Beauty in the form of S3-Rec, Zhou et al., CIKM 2020).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.lake import InputError

COLUMNS = {"user": pl.Int32, "item": pl.Int32, "position": pl.Int32}


def pairs(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """train.txt and test.txt of a folder, each user, item and position (0 = the line's first item)."""
    return _read(folder / "train.txt"), _read(folder / "test.txt")


def sequences(path: Path) -> pl.DataFrame:
    """user, item and position (0 = the user's oldest), by user and position."""
    return _read(path)


def leave_out(sequences: pl.DataFrame, last: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the `last` event but `last` - 1 of each user, later ones dropped: what was before it, and that event.

    1 is the usual test event and 2 the usual validation event; a user with fewer events than `last` has none.
    """
    back = pl.col("position").max().over("user") - pl.col("position") + 1
    return sequences.filter(back > last), sequences.filter(back == last)


def _read(path: Path) -> pl.DataFrame:
    """Raises `InputError` for a file that is missing or empty, a word that is no whole number from 0, a user twice."""
    if not path.exists():
        raise InputError(f"{path}: no such file; set $REC_DATA to the folder that holds {path.parent.name}/")
    users, items = [], []
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if bad := [word for word in words if not (word.isascii() and word.isdigit())]:
                raise InputError(f"{path}: line {number}: {bad[0]!r} is no whole number; a line is `user item item …`")
            if words:
                users.append(int(words[0]))
                items.append(np.array(words[1:], np.int64))
    if not users:
        raise InputError(f"{path}: the file is empty; a line is `user item item …`")
    if len(set(users)) < len(users):
        raise InputError(f"{path}: a user has two lines; join them")
    lengths = [len(own) for own in items]
    columns = {
        "user": np.repeat(users, lengths),
        "item": np.concatenate(items),
        "position": np.concatenate([np.arange(length) for length in lengths]),
    }
    return pl.DataFrame(columns).cast(COLUMNS).sort("user", "position")  # type: ignore[arg-type]
