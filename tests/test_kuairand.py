"""KuaiRand: a literal copy of the release's layout, and the release itself where it is present."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources import contract, kuairand

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
LATER = HEADER + (
    "0,5,20220425,0,1650812741436,1,1,0,0,0,0,1,61802,49866,0,0,0,0,1\n"
    "0,6,20220425,0,1650812741436,0,0,0,0,0,0,0,500,49866,0,0,0,0,1\n"
    "0,6,20220425,0,1650812741436,0,0,0,0,0,0,0,500,49866,0,0,0,0,1\n"
    "1,5,20220425,0,1650812741437,1,0,0,0,0,0,0,1184,11933,0,0,0,0,14\n"
)
EARLIER = HEADER + "1,6,20220410,0,1649600000000,1,0,0,0,0,0,0,1184,11933,0,0,0,0,1\n"
RANDOM = HEADER + "1,7,20220426,0,1650900000000,0,0,0,0,0,0,0,1184,11933,0,0,0,1,1\n"
USERS = "user_id,user_active_degree,onehot_feat0\n0,full_active,1\n1,high_active,0\n"
VIDEOS = 'video_id,author_id,video_type,upload_dt,tag\n5,70,NORMAL,2022-04-10,"39,2"\n6,71,AD,2022-04-11,\n'
TASKS = config.Contract(tasks=("click", "like"))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The part of the release that the project's own data holds: one log of three, and derived sequences."""
    data = tmp_path / "release" / "data"
    data.mkdir(parents=True)
    (data / kuairand.LOGS[1]).write_text(LATER)
    (data / kuairand.USERS).write_text(USERS)
    (data / kuairand.VIDEOS).write_text(VIDEOS)
    (data / "video_features_statistic_pure.csv").write_text("never read")
    pl.DataFrame(
        {
            "user_id": [0, 1, 1],
            "history_len": [3, 1, 1],
            "last_time_ms": [1650600000000, 1650600000001, 1650900000000],
            "watch_seq": [[5, 6, 5], [6], [7]],
            "like_seq": [[6], [], []],
            "long_watch_seq": [[5, 5], [], []],
        },
        schema_overrides={"like_seq": pl.List(pl.Int64), "long_watch_seq": pl.List(pl.Int64)},
    ).write_parquet(data.parent / kuairand.SEQUENCES)
    return data.parent


def run(release: Path, **options: float) -> tuple[dict[str, float], dict[str, pl.DataFrame]]:
    out = release / "out"
    out.mkdir()
    told = contract.write_events(config.KuaiRand(folder=str(release), **options), TASKS, out)  # type: ignore[arg-type]
    return told, {path.stem: pl.read_parquet(path) for path in out.glob("*.parquet")}


def test_a_part_of_the_release(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, tables = run(release)
    events = tables["events"]
    assert events.select("user_id", "item_id", "domain", "click", "like", "play_seconds").rows() == [
        (0, 5, "tab1", 1, 1, 61.802),
        (0, 6, "tab1", 0, 0, 0.5),
        (1, 5, "tab14", 1, 0, 1.184),
    ]
    assert events["time"].to_physical().to_list() == [1650812741436000, 1650812741436000, 1650812741437000]
    assert (told["missing_files"], told["rejected_duplicate"]) == (2, 1)
    printed = "".join(capsys.readouterr().out.split())
    assert kuairand.LOGS[0] in printed
    assert kuairand.LOGS[2] in printed


def test_videos_and_users(release: Path) -> None:
    _, tables = run(release)
    items = tables["items"]
    assert items.select("item_id", "author_id", "category", "tags", "tag", "video_type").rows() == [
        (5, 70, "39", ["39", "2"], "39", "NORMAL"),
        (6, 71, None, None, None, "AD"),
    ]
    assert str(items["published"][0]) == "2022-04-09 16:00:00+00:00"
    assert tables["users"].columns == ["user_id", "user_active_degree", "onehot_feat0"]


def test_sequences_become_history_unless_they_reach_into_the_log(release: Path) -> None:
    _, tables = run(release)
    assert tables["history"].select("user_id", "behaviour", "rank", "item_id").rows() == [
        (0, "click", 0, 5),
        (0, "click", 1, 6),
        (0, "click", 2, 5),
        (0, "like", 0, 6),
        (0, "long_view", 0, 5),
        (0, "long_view", 1, 5),
        (1, "click", 0, 6),
    ]


def test_the_whole_release(release: Path) -> None:
    (release / "data" / kuairand.LOGS[0]).write_text(EARLIER)
    (release / "data" / kuairand.LOGS[2]).write_text(RANDOM)
    told, tables = run(release)
    assert told["missing_files"] == 0
    assert "history" not in tables
    assert tables["events"]["random"].to_list() == [False, False, False, False, True]
    assert told["bare_items"] == 1
    names = [path.name for path in contract.source_files(config.KuaiRand(folder=str(release)))]
    assert names == [*kuairand.LOGS, kuairand.USERS, kuairand.VIDEOS]


def test_small_tabs_are_pooled(release: Path) -> None:
    _, tables = run(release, minimum_domain_share=0.5)
    assert tables["events"]["domain"].to_list() == ["tab1", "tab1", "other"]


def test_without_feature_files(release: Path) -> None:
    (release / "data" / kuairand.USERS).unlink()
    (release / "data" / kuairand.VIDEOS).unlink()
    told, tables = run(release)
    assert told["missing_files"] == 4
    assert tables["items"]["item_id"].to_list() == [5, 6]
    assert tables["users"]["user_id"].to_list() == [0, 1]


def test_without_any_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of log_standard_4_08.*source\.folder"):
        kuairand.read(config.KuaiRand(folder=str(tmp_path)))


def test_a_missing_column_is_named(release: Path) -> None:
    (release / "data" / kuairand.LOGS[1]).write_text(LATER.replace("is_like", "liked"))
    with pytest.raises(InputError, match=r"log_standard_4_22.*no column 'is_like'; it has .*liked"):
        run(release)


def test_the_folder_may_stand_in_the_environment(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REC_DATA", str(release.parent))
    files = contract.source_files(config.KuaiRand(folder="$REC_DATA/release"))
    assert [path.name for path in files] == [kuairand.LOGS[1], kuairand.USERS, kuairand.VIDEOS, kuairand.SEQUENCES]


@pytest.mark.skipif(not contract.source_files(config.KuaiRand()), reason="KuaiRand-Pure is not under $REC_DATA")
def test_the_real_release(tmp_path: Path) -> None:
    told = contract.write_events(config.KuaiRand(), config.Contract(tasks=("click", "long_view", "like")), tmp_path)
    assert told["events"] > 170_000
    assert told["rejected_rows"] == told["rejected_duplicate"]
    assert 5 <= told["domains"] <= 16
    assert 0.3 < told["rate_click"] < 0.6
    events = pl.read_parquet(tmp_path / "events.parquet")
    assert events.unique().height == events.height == told["events"]
