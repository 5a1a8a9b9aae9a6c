"""The job of `recfunnel bench features` as a good user of DuckDB or pandas would write it. Both are optional extras."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bench.feature_job import (
    ADMIT_AFTER,
    CATEGORIES,
    ENTITIES,
    LENGTH,
    NUMBERS,
    PARTS,
    PRIOR,
    SIDES,
    WINDOWS,
    Result,
)
from pipeline.features.statistics import ALL, window_length
from pipeline.features.timeline import Integers


def duckdb(path: Path, threads: int) -> Result:
    """SQL with a RANGE frame a window that ends 1 µs before the row, over integer keys and times, in one query.

    The result is a table inside DuckDB. A user's history is a list of all clicks and how many of them came before the
    row, which is one of the counts.
    """
    import duckdb

    database = duckdb.connect(config={"threads": threads, "preserve_insertion_order": False})
    database.execute("SET enable_progress_bar = false")
    database.execute(
        f"CREATE TABLE raw AS SELECT *, file_row_number AS row FROM read_parquet('{path}', file_row_number = true)"
    )
    for side in SIDES:
        database.execute(
            f"""CREATE TABLE {side}s AS
            SELECT {side}, key::INTEGER AS key, if(n >= {ADMIT_AFTER}, key, 0)::INTEGER AS code
            FROM (SELECT {side}, count(*) AS n, row_number() OVER (ORDER BY count(*) DESC, {side}) AS key
                  FROM raw GROUP BY {side})"""
        )
    buckets = []
    for name in NUMBERS:
        shares = [part / PARTS for part in range(1, PARTS)]
        [(cuts,)] = database.execute(f"SELECT quantile_disc({name}, {shares}) FROM raw").fetchall()
        cases = " ".join(f"WHEN {name} <= {cut!r}::FLOAT THEN {place}" for place, cut in enumerate(cuts, 1))
        buckets.append(f"CASE {cases} ELSE {PARTS} END AS {name}")
    database.execute(
        f"""CREATE TABLE events AS
        SELECT row, epoch_us(time) AS time, users.key AS "user", items.key AS item, category, click::INTEGER AS click,
               users.code AS user_code, items.code AS item_code, {", ".join(buckets)}
        FROM raw JOIN users ON raw."user" = users."user" JOIN items ON raw.item = items.item"""
    )
    windows, counts, columns = [], [], []
    a, b = PRIOR
    for place, entity in enumerate(ENTITIES):
        keys = ", ".join(f'"{key}"' for key in entity.split("+"))
        overall = f"(clicks_{place}_{ALL} + {a}::DOUBLE) / (shows_{place}_{ALL} + {b}::DOUBLE)"
        for window in WINDOWS:
            name, length = f"{place}_{window}", window_length(window)
            begin = "UNBOUNDED" if length is None else length
            windows.append(
                f"w_{name} AS (PARTITION BY {keys} ORDER BY time RANGE BETWEEN {begin} PRECEDING AND 1 PRECEDING)"
            )
            counts.append(f"count(*) OVER w_{name} AS shows_{name}")
            counts.append(f"coalesce(sum(click) OVER w_{name}, 0)::BIGINT AS clicks_{name}")
            rate = overall if length is None else f"(clicks_{name} + {overall} * {b}) / (shows_{name} + {b}::DOUBLE)"
            columns.append(f"ln(1 + shows_{name})::FLOAT AS shows_{name}, ({rate})::FLOAT AS rate_{name}")
    kept = ["row", *(f"{side}_code" for side in SIDES), *NUMBERS]
    database.execute(
        f"""CREATE TABLE features AS
        SELECT {", ".join(kept)}, "user", clicks_0_{ALL} AS clicks, {", ".join(columns)}
        FROM (SELECT *, {", ".join(counts)} FROM events WINDOW {", ".join(windows)})"""
    )
    database.execute(
        """CREATE TABLE histories AS
        SELECT "user", list(item ORDER BY time, row) AS clicked FROM events WHERE click = 1 GROUP BY "user" """
    )

    def table(select: str) -> npt.NDArray[Any]:
        found = database.execute(f"SELECT {select} FROM features ORDER BY row").fetchnumpy()
        return np.stack([np.asarray(column) for column in found.values()], axis=1)

    def history(rows: Integers) -> list[list[str]]:
        database.execute(
            "CREATE OR REPLACE TABLE wanted AS SELECT unnest($1) AS row, generate_subscripts($1, 1) AS n",
            [rows.tolist()],
        )
        found = database.execute(
            f"""SELECT list_transform(clicked[greatest(clicks - {LENGTH - 1}, 1):clicks], lambda key: names[key])
            FROM wanted JOIN features USING (row) LEFT JOIN histories USING ("user"),
                 (SELECT list(item ORDER BY key) AS names FROM items) ORDER BY n"""
        ).fetchall()
        return [one or [] for (one,) in found]

    return Result(
        statistics=lambda entity: table(
            ", ".join(f"shows_{ENTITIES.index(entity)}_{one}, rate_{ENTITIES.index(entity)}_{one}" for one in WINDOWS)
        ),
        codes=lambda side: table(f"{side}_code")[:, 0],
        buckets=lambda name: table(name)[:, 0],
        history=history,
    )


def pandas_asof(path: Path) -> Result:
    """Running totals of each key, and for every window a `merge_asof` with the last one strictly before its begin."""
    import pandas

    def count(frame: Any) -> Callable[[str], npt.NDArray[np.float64]]:
        totals = frame[["time", "key"]].assign(
            shows=frame.groupby("key").cumcount() + 1, clicks=frame.groupby("key")["click"].cumsum()
        )

        def before(window: str) -> npt.NDArray[np.float64]:
            lag = 0 if window == "now" else window_length(window)
            asked = frame[["key"]].assign(time=frame["time"] - pandas.Timedelta(lag, "us"))
            found = pandas.merge_asof(asked, totals, on="time", by="key", allow_exact_matches=False)
            totals_before: npt.NDArray[np.float64] = found[["shows", "clicks"]].fillna(0).to_numpy()
            return totals_before

        now = before("now")
        return lambda window: now if window == ALL else now - before(window)

    return _pandas(path, count)


def pandas_rolling(path: Path) -> Result:
    """`groupby().rolling(window, closed="left").sum()`, as the manual has it for windows that leave out the row."""

    def count(frame: Any) -> Callable[[str], npt.NDArray[np.float64]]:
        groups = frame.assign(shows=1).set_index("time").groupby("key")[["shows", "click"]]
        rows = np.argsort(frame["key"].to_numpy(), kind="stable")

        def within(window: str) -> npt.NDArray[np.float64]:
            length = "36500D" if window == ALL else window.replace("d", "D")
            counts = np.empty((len(frame), 2))
            counts[rows] = groups.rolling(length, closed="left").sum().fillna(0).to_numpy()
            return counts

        return within

    return _pandas(path, count)


def _pandas(path: Path, count: Callable[[Any], Callable[[str], npt.NDArray[np.float64]]]) -> Result:
    """The job around `count`, which gives impressions and clicks (N, 2) of a window for a frame of time, key, click."""
    import pandas

    events = pandas.read_parquet(path)
    codes, keys = {}, {}
    for side in SIDES:
        keys[side], values = events[side].factorize()
        occurred = np.bincount(keys[side])
        admitted = np.argsort(-occurred, kind="stable")[: int((occurred >= ADMIT_AFTER).sum())]
        code = np.zeros(len(values), np.int32)
        code[admitted] = np.arange(1, len(admitted) + 1)
        codes[side] = code[keys[side]]
    keys["category"] = events["category"].to_numpy()
    keys["user+category"] = keys["user"] * CATEGORIES + keys["category"]
    a, b = PRIOR
    statistics = {}
    for entity in ENTITIES:
        within = count(events[["time", "click"]].assign(key=keys[entity]))
        total = within(ALL)
        overall = (total[:, 1] + a) / (total[:, 0] + b)
        columns = np.empty((len(events), 2 * len(WINDOWS)), np.float32)
        for place, window in enumerate(WINDOWS):
            shows, clicks = (total if window == ALL else within(window)).T
            columns[:, 2 * place] = np.log1p(shows)
            columns[:, 2 * place + 1] = overall if window == ALL else (clicks + overall * b) / (shows + b)
        statistics[entity] = columns
        if entity == "user":
            earlier = total[:, 1].astype(np.int64)
    buckets = {}
    for name in NUMBERS:
        numbers = events[name].to_numpy()
        cuts = np.quantile(numbers, np.arange(1, PARTS) / PARTS, method="inverted_cdf")
        buckets[name] = 1 + np.searchsorted(cuts, numbers).astype(np.int32)
    clicked = events["click"].to_numpy() == 1
    owners = keys["user"][clicked]
    packed = events["item"].to_numpy()[clicked][np.argsort(owners, kind="stable")]
    starts = np.append(0, np.cumsum(np.bincount(owners, minlength=int(keys["user"].max()) + 1)))
    ends = starts[keys["user"]] + earlier
    begins = ends - np.minimum(earlier, LENGTH)
    return Result(
        statistics=statistics.__getitem__,
        codes=codes.__getitem__,
        buckets=buckets.__getitem__,
        history=lambda rows: [packed[begins[row] : ends[row]].tolist() for row in rows],
    )
