"""KuaiRand-Pure (Gao et al., CIKM 2022): the official release's files, whole or in part.

Of its three logs any may be missing. `video_features_statistic_pure.csv` averages the whole month, the days of the
test included, and is never read. Where the log of 8 to 21 April is missing, sequences derived from the days before
the log may stand beside the data as `user_sequences_until_0424.parquet`: they become the history.
"""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
from rich import print as tell

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources.raw import RawLog, read_table, require

DEFAULT_DATA = "../shared/data"
EARLIER_LOG = "log_standard_4_08_to_4_21_pure.csv"
LOGS = (EARLIER_LOG, "log_standard_4_22_to_5_08_pure.csv", "log_random_4_22_to_5_08_pure.csv")
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
SEQUENCES = "user_sequences_until_0424.parquet"
TASKS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "profile_enter": "is_profile_enter",
}
BEHAVIOURS = {"watch_seq": "click", "like_seq": "like", "long_watch_seq": "long_view"}
ADVICE = "source.folder, which must hold the official release's data/"


def files(source: config.KuaiRand) -> list[Path]:
    """The files of the release that are there and are read."""
    folder = _folder(source)
    present = [folder / "data" / name for name in (*LOGS, USERS, VIDEOS) if (folder / "data" / name).exists()]
    return [*present, *([folder / SEQUENCES] if _has_sequences(folder) else [])]


def read(source: config.KuaiRand) -> RawLog:
    """The release as raw tables; files that are not there are named on the terminal and counted in `missing_files`.

    Raises `InputError` when no log is there or a column is missing.
    """
    folder = _folder(source)
    missing = [name for name in (*LOGS, USERS, VIDEOS) if not (folder / "data" / name).exists()]
    logs = [folder / "data" / name for name in LOGS if name not in missing]
    if not logs:
        raise InputError(f"{folder / 'data'}: none of {', '.join(LOGS)} is there; correct {ADVICE}")
    if missing:
        tell(f"{folder / 'data'}: going on without {', '.join(missing)}")
    events = _events(logs, source.minimum_domain_share)
    first_ms = int(events.select(pl.col("time").min()).item())
    return RawLog(
        events=[events],
        items=None if VIDEOS in missing else _videos(folder / "data" / VIDEOS),
        users=None if USERS in missing else _users(folder / "data" / USERS),
        history=[_history(folder / SEQUENCES, first_ms)] if _has_sequences(folder) else None,
        names={
            "events": " + ".join(map(str, logs)),
            "items": str(folder / "data" / VIDEOS),
            "users": str(folder / "data" / USERS),
            "history": str(folder / SEQUENCES),
        },
        advice=ADVICE,
        time_unit="ms",
        notes={"missing_files": len(missing)},
    )


def _folder(source: config.KuaiRand) -> Path:
    return Path(source.folder.replace("$REC_DATA", os.environ.get("REC_DATA", DEFAULT_DATA)))


def _has_sequences(folder: Path) -> bool:
    """Sequences count only where the log they were taken from is not there itself."""
    return (folder / SEQUENCES).exists() and not (folder / "data" / EARLIER_LOG).exists()


def _events(paths: list[Path], minimum_share: float) -> pl.DataFrame:
    """All logs as one. Tabs with less than the stated share of the rows are one domain, "other"."""
    needed = ("user_id", "video_id", "time_ms", "tab", "is_rand", "play_time_ms", *TASKS.values())
    frames = []
    for path in paths:
        frame = read_table(path)
        require(frame, needed, name=str(path), advice=ADVICE)
        frames.append(frame.select(needed))
    tab = pl.format("tab{}", "tab")
    return pl.concat(frames, how="vertical_relaxed").select(
        "user_id",
        pl.col("video_id").alias("item_id"),
        pl.when(pl.len().over("tab") >= minimum_share * pl.len()).then(tab).otherwise(pl.lit("other")).alias("domain"),
        pl.col("time_ms").alias("time"),
        pl.col("is_rand").alias("random"),
        *(pl.col(column).alias(task) for task, column in TASKS.items()),
        (pl.col("play_time_ms") / 1000).alias("play_seconds"),
    )


def _videos(path: Path) -> pl.DataFrame:
    """Upload day as the time of publication (start of the day in Beijing), the first of the tags as category."""
    table = read_table(path)
    require(table, ("video_id", "author_id", "upload_dt", "tag"), name=str(path), advice=ADVICE)
    tags = pl.col("tag").cast(pl.String).str.split(",")
    day = pl.col("upload_dt").cast(pl.String).str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)
    return table.select(
        pl.col("video_id").alias("item_id"),
        day.dt.replace_time_zone("Asia/Shanghai").alias("published"),
        "author_id",
        tags.list.first().alias("category"),
        tags.alias("tags"),
        tags.list.first().alias("tag"),
        pl.exclude("video_id", "author_id", "upload_dt", "tag"),
    )


def _users(path: Path) -> pl.DataFrame:
    table = read_table(path)
    require(table, ("user_id",), name=str(path), advice=ADVICE)
    return table


def _history(path: Path, first_ms: int) -> pl.DataFrame:
    """The sequences of users whose newest event lies before the log; that event's time is a bound for all of theirs."""
    table = read_table(path)
    require(table, ("user_id", "last_time_ms", *BEHAVIOURS), name=str(path), advice=ADVICE)
    prior = table.filter(pl.col("last_time_ms") < first_ms)
    sequences = [
        prior.select(
            "user_id",
            pl.col(column).alias("item_id"),
            pl.lit(behaviour).alias("behaviour"),
            pl.col("last_time_ms").alias("time"),
        ).explode("item_id", empty_as_null=False)
        for column, behaviour in BEHAVIOURS.items()
    ]
    return pl.concat(sequences).with_columns(pl.int_range(pl.len()).over("user_id", "behaviour").alias("rank"))
