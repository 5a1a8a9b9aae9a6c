from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from funnel_tables import TASKS, Folders, write, write_run
from scipy.stats import kendalltau

from pipeline.config import Contract, Evaluation, Simulator
from pipeline.evaluation import truth
from pipeline.evaluation.funnel import evaluate, read_tables
from pipeline.evaluation.losses import LOSSES
from pipeline.evaluation.metrics import auc
from pipeline.evaluation.report import report_tables
from pipeline.lake import InputError
from pipeline.sources.contract import write_events

KEEP, FINAL = 20, 8
CONTRACT = Contract(tasks=TASKS)
SETTINGS = Evaluation(cutoffs=(5, 10), resamples=200)


@dataclass(frozen=True)
class Run:
    folders: Folders
    metrics: dict[str, float]

    def table(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folders.out / f"{name}.parquet")


def run(folders: Folders) -> dict[str, float]:
    inputs = (folders.events, folders.features, folders.recall, folders.ranked, folders.out)
    return evaluate(*inputs, settings=SETTINGS, contract=CONTRACT, keep=KEEP)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folders = write_run(tmp_path_factory.mktemp("run"), keep=KEEP, final=FINAL)
    return Run(folders, run(folders))


def rows(folder: Path, name: str) -> list[dict]:
    return pl.read_parquet(folder / f"{name}.parquet").to_dicts()


def held_out(run: Run) -> dict[int, set[int]]:
    wanted = defaultdict(set)
    for row in rows(run.folders.recall, "positives"):
        wanted[row["request"]].add(row["item"])
    return wanted


def lists(run: Run) -> dict[str, dict[int, list[int]]]:
    """Every stage's lists, request by request, with plain loops."""
    stages: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows(run.folders.recall, "candidates"), key=lambda row: row["rank"]):
        stages[f"route {row['route']}"][row["request"]].append(row["item"])
        if row["item"] not in stages["union"][row["request"]]:
            stages["union"][row["request"]].append(row["item"])
    ranked = rows(run.folders.ranked, "ranked")
    for stage, column in {"merge": "position", "coarse": "coarse_rank", "fine on everything": "fine_rank"}.items():
        for row in sorted(ranked, key=lambda row: row[column]):
            stages[stage][row["request"]].append(row["item"])
    for request, items in stages["coarse"].items():
        stages["kept"][request] = items[:KEEP]
    for row in sorted((row for row in ranked if row["shown"]), key=lambda row: row["rank"]):
        stages["final"][row["request"]].append(row["item"])
    for row in sorted((row for row in ranked if row["position"] <= KEEP), key=lambda row: -row["fused"]):
        stages["merge → fine"][row["request"]].append(row["item"])
    return stages


def mean_recall(found: dict[int, list[int]], wanted: dict[int, set[int]], k: int) -> float:
    return float(np.mean([len(items & set(found[request][:k])) / len(items) for request, items in wanted.items()]))


def mean_ndcg(found: dict[int, list[int]], wanted: dict[int, set[int]], k: int) -> float:
    values = []
    for request, items in wanted.items():
        gain = sum(1 / math.log2(2 + place) for place, item in enumerate(found[request][:k]) if item in items)
        values.append(gain / sum(1 / math.log2(2 + place) for place in range(min(k, len(items)))))
    return float(np.mean(values))


def test_stages_are_the_plain_loops(finished: Run):
    wanted, found = held_out(finished), lists(finished)
    table = finished.table("stages")
    stages = ["route hot", "route two_tower", "union", "merge", "coarse", "kept", "final", "fine on everything"]
    assert table["stage"].to_list() == stages
    for row in table.to_dicts():
        items = found[row["stage"]]
        assert row["recall"] == pytest.approx(mean_recall(items, wanted, 10**6))
        assert row["size"] == pytest.approx(np.mean([len(items[request]) for request in wanted]))
        for k in SETTINGS.cutoffs if row["stage"] != "union" else ():
            assert row[f"recall_{k}"] == pytest.approx(mean_recall(items, wanted, k))
            assert row[f"ndcg_{k}"] == pytest.approx(mean_ndcg(items, wanted, k))
            assert row[f"hit_{k}"] == pytest.approx(np.mean([bool(set(items[r][:k]) & w) for r, w in wanted.items()]))
    union = table.row(by_predicate=pl.col("stage") == "union", named=True)
    assert union["recall_5"] is union["ndcg_5"] is union["mrr"] is None


def test_domains_average_to_the_whole(finished: Run):
    final = finished.table("domains").filter(pl.col("stage") == "final")
    assert set(final["domain"]) == {"home", "search", "video"}
    assert final["requests"].sum() == finished.metrics["test_requests"]
    assert final["positives"].sum() == finished.metrics["test_positives"]
    whole = np.average(final["recall_10"], weights=final["requests"])
    assert whole == pytest.approx(finished.metrics["final_recall_10"])
    assert finished.metrics["final_recall_10_home"] == final["recall_10"][0]


def test_routes_on_the_loops(finished: Run):
    wanted, found = held_out(finished), lists(finished)
    pairs = [(request, item) for request, items in wanted.items() for item in items]
    ranked = rows(finished.folders.ranked, "ranked")
    for row in finished.table("routes").to_dicts():
        mine, other = (found[f"route {name}"] for name in sorted(["hot", "two_tower"], key=lambda n: n != row["route"]))
        alone = [item in mine[request] and item not in other[request] for request, item in pairs]
        assert row["only"] == pytest.approx(np.mean(alone))
        assert row["merge_share"] == pytest.approx(np.mean([one["route"] == row["route"] for one in ranked]))
        shown = [one for one in ranked if one["shown"] and one["route"] == row["route"]]
        assert row["final_positives"] == sum(one["item"] in wanted[one["request"]] for one in shown)


def test_every_positive_is_lost_once_and_where_the_loop_says(finished: Run):
    found = lists(finished)
    time = {row["request"]: row["time"] for row in rows(finished.folders.recall, "requests")}
    exposed = {(row["request"], row["item"]) for row in rows(finished.folders.recall, "exposed")}
    published = pl.read_parquet(finished.folders.features / "items.parquet")["published"].to_list()
    lost = finished.table("lost")
    assert len(lost) == finished.metrics["test_positives"]
    for row in lost.to_dicts():
        request, item = row["request"], row["item"]
        if item in found["final"][request]:
            fate = "shown"
        elif item in found["kept"][request]:
            fate = "fine"
        elif item in found["merge"][request]:
            fate = "coarse"
        elif item == 0 or (published[item] or 0) > time[request]:
            fate = "unknown item"
        elif (request, item) in exposed:
            fate = "exposure"
        elif item in found["union"][request]:
            fate = "merge"
        else:
            fate = "recall"
        assert row["lost"] == fate
    table = finished.table("losses")
    for (_, _), group in table.group_by("domain", "route"):
        assert group["lost"].to_list() == list(LOSSES)
        assert group["share"].sum() == pytest.approx(1)
    everywhere = table.filter(pl.col("domain") == "all", pl.col("route") == "all")
    assert everywhere["positives"].to_list() == [int((lost["lost"] == fate).sum()) for fate in LOSSES]
    assert finished.metrics["lost_recall"] == everywhere["share"][1]


def test_an_item_unknown_or_unborn_is_lost_before_recall(tmp_path: Path):
    folders = write_run(tmp_path, users=15)
    positives = pl.read_parquet(folders.recall / "positives.parquet")
    unborn = pl.read_parquet(folders.features / "items.parquet").height - 1
    extra = pl.DataFrame({"request": [0, 0], "item": [0, unborn], "click": [1, 1], "like": [0, 0]}, positives.schema)
    write(pl.concat([positives, extra]).unique(["request", "item"]), folders.recall / "positives.parquet")
    run(folders)
    lost = pl.read_parquet(folders.out / "lost.parquet").filter(
        pl.col("request") == 0, pl.col("item").is_in([0, unborn])
    )
    assert lost["lost"].to_list() == ["unknown item"] * 2
    assert lost["route"].to_list() == [None, None]


def test_gates_compare_what_they_say(finished: Run):
    wanted, found = held_out(finished), lists(finished)
    gates = {(row["gate"], row["metric"]): row for row in finished.table("gates").to_dicts()}
    assert len(gates) == 8
    for gate, ours, theirs in (
        ("coarse", "final", "merge → fine"),
        ("fine", "final", "coarse"),
        ("coarse order", "coarse", "merge"),
        ("merge", "merge", "route two_tower"),
    ):
        for metric, measure in (("recall", mean_recall), ("ndcg", mean_ndcg)):
            row = gates[gate, metric]
            assert row["with"] == pytest.approx(measure(found[ours], wanted, row["k"]))
            assert row["without"] == pytest.approx(measure(found[theirs], wanted, row["k"]))
            assert row["difference"] == pytest.approx(row["with"] - row["without"])
            assert row["low"] <= row["difference"] <= row["high"]
    assert [gates[gate, "recall"]["k"] for gate in ("coarse", "fine", "coarse order", "merge")] == [8, 8, KEEP, 40]
    assert finished.metrics["gate_fine_recall_low"] == gates["fine", "recall"]["low"]


def test_a_fine_ranker_that_turns_the_order_round_fails_its_gate(tmp_path: Path):
    folders = write_run(tmp_path, users=15)
    ranked = pl.read_parquet(folders.ranked / "ranked.parquet")
    kept = pl.col("rank").max().over("request") + 1 - pl.col("rank")
    ranked = ranked.with_columns(rank=kept).with_columns(shown=(pl.col("rank") <= FINAL).fill_null(value=False))
    write(ranked, folders.ranked / "ranked.parquet")
    run(folders)
    gates = pl.read_parquet(folders.out / "gates.parquet").filter(pl.col("gate") == "fine")
    assert gates["verdict"].to_list() == ["does not beat"] * 2


def test_consistency_is_the_loop(finished: Run):
    wanted, found = held_out(finished), lists(finished)
    ranked = pl.read_parquet(finished.folders.ranked / "ranked.parquet")
    users = {row["request"]: row["user"] for row in rows(finished.folders.recall, "requests")}
    clicked = defaultdict(set)
    for row in rows(finished.folders.ranked, "predictions"):
        if row["click"]:
            clicked[row["user"]].add(row["item"])
    table = finished.table("consistency")
    assert KEEP in table["k"].to_list()
    for row in table.to_dicts():
        k = row["k"]
        tops = [set(found["fine on everything"][r][:20]) & set(found["coarse"][r][:k]) for r in wanted]
        assert row["fine_20"] == pytest.approx(np.mean([len(top) / 20 for top in tops]))
        everywhere = [clicked[users[r]] for r in wanted]
        inside = [len(w & set(found["coarse"][r][:k])) / len(w) for r, w in zip(wanted, everywhere, strict=True)]
        assert row["ash"] == pytest.approx(np.mean(inside))
        assert row["ish"] == pytest.approx(mean_recall(found["coarse"], wanted, k))
        assert row["chance"] == pytest.approx(k / 50)
    taus = [kendalltau(part["coarse_rank"], part["fine_rank"]).statistic for part in ranked.partition_by("request")]
    assert finished.metrics["coarse_fine_tau"] == pytest.approx(np.mean(taus))
    cost = mean_ndcg(found["fine on everything"], wanted, FINAL) - mean_ndcg(found["final"], wanted, FINAL)
    assert finished.metrics["cascade_loss"] == pytest.approx(cost)


def test_tasks_overall_by_domain_and_on_random_exposure(finished: Run):
    predictions = pl.read_parquet(finished.folders.ranked / "predictions.parquet")
    table = finished.table("tasks")
    whole = table.row(
        by_predicate=(pl.col("exposure") == "all") & (pl.col("domain") == "all") & (pl.col("task") == "click"),
        named=True,
    )
    assert whole["rows"] == len(predictions)
    assert whole["auc"] == pytest.approx(auc(predictions["click"].to_numpy(), predictions["score_click"].to_numpy()))
    assert whole["ratio"] == pytest.approx(predictions["score_click"].sum() / predictions["click"].sum())
    home = predictions.filter(pl.col("domain") == 0)
    expected = auc(home["click"].to_numpy(), home["score_click"].to_numpy())
    assert finished.metrics["auc_click_home"] == pytest.approx(expected)
    random = predictions.filter("random")
    expected = auc(random["click"].to_numpy(), random["score_click"].to_numpy())
    assert finished.metrics["auc_click_random"] == pytest.approx(expected)
    assert set(finished.table("fields")["field"]) == {"domain", "segment", "category"}


def test_what_is_undefined_is_left_out_and_null(tmp_path: Path):
    folders = write_run(tmp_path, users=15)
    predictions = pl.read_parquet(folders.ranked / "predictions.parquet")
    predictions = predictions.with_columns(like=pl.lit(0, pl.Int8)).drop("item_click_rate_all")
    write(predictions, folders.ranked / "predictions.parquet")
    metrics = run(folders)
    assert "auc_like" not in metrics
    assert "ratio_like" not in metrics
    assert "auc_click_popularity" not in metrics
    told = json.loads((folders.out / "metrics.json").read_text())
    assert all(row["auc"] is None for row in told["tasks"] if row["task"] == "like")


def test_same_input_same_bytes(tmp_path: Path):
    first, second = (write_run(tmp_path / name, users=15) for name in ("first", "second"))
    run(first)
    run(second)
    names = sorted(path.name for path in first.out.iterdir())
    assert {"metrics.json", "losses.png", "stages.parquet", "reliability.png"} <= set(names)
    for name in names:
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name


def test_requests_without_positives_are_not_evaluated_and_none_is_an_error(tmp_path: Path):
    folders = write_run(tmp_path, users=15)
    positives = pl.read_parquet(folders.recall / "positives.parquet")
    write(positives.filter(pl.col("request") == 3), folders.recall / "positives.parquet")
    assert run(folders)["test_requests"] == 1
    write(positives.clear(), folders.recall / "positives.parquet")
    with pytest.raises(InputError, match=r"requests\.parquet: no request has a held-out positive"):
        run(folders)


def test_a_simulated_log_tells_the_true_value_of_lists(tmp_path: Path):
    folders = write_run(tmp_path / "run")
    events = tmp_path / "events"
    events.mkdir()
    contract = Contract()
    write_events(Simulator(users=40, items=120, impressions=3000, days=7), contract, events)
    assert not truth.is_known(folders.events)
    assert truth.is_known(events)

    log = pl.read_parquet(events / "events.parquet").hstack(
        pl.read_parquet(events / "truth.parquet").select(pl.col("click").alias("p"))
    )
    begin = log["time"].dt.epoch("us")[2000]
    late = log.filter(pl.col("time").dt.epoch("us") >= begin, pl.col("shown"))
    expected = auc(late["click"].to_numpy(), late["p"].to_numpy())
    assert truth.oracle_auc(events, begin, "click") == pytest.approx(expected)
    assert expected > 0.6

    for name in ("user", "item"):
        ids = pl.read_parquet(events / f"{name}s.parquet")[f"{name}_id"]
        numbered = pl.DataFrame({f"{name}_id": pl.concat([pl.Series([None], dtype=ids.dtype), ids])})
        old = pl.read_parquet(folders.features / f"{name}s.parquet").drop(f"{name}_id")
        write(pl.concat([numbered, old], how="horizontal"), folders.features / f"{name}s.parquet")
    schema = (folders.features / "schema.json").read_text()
    for ours, theirs in zip(("home", "search", "video"), log["domain"].unique().sort(), strict=False):
        schema = schema.replace(f'"{ours}"', f'"{theirs}"')
    (folders.features / "schema.json").write_text(schema)
    write(
        pl.read_parquet(folders.recall / "requests.parquet").with_columns(time=pl.lit(begin)),
        folders.recall / "requests.parquet",
    )
    slices = json.loads((folders.features / "slices.json").read_text())
    (folders.features / "slices.json").write_text(json.dumps({**slices, "test": begin}))

    metrics = run(Folders(events, folders.features, folders.recall, folders.ranked, folders.out))
    assert metrics["auc_click_oracle"] == pytest.approx(expected)
    values = dict(pl.read_parquet(folders.out / "values.parquet").iter_rows())
    assert list(values) == [
        truth.RANDOM, "recall order", "coarse order", "coarse → fine", "fine on everything", truth.ORACLE,
    ]  # fmt: skip
    assert max(values.values()) == values[truth.ORACLE] <= 1
    assert metrics["value_coarse_fine"] == values["coarse → fine"]
    assert 0 < values[truth.RANDOM] < values[truth.ORACLE]
    shown = [table.title for section in report_tables(read_tables(folders.out)).values() for table in section]
    assert "True value of lists" in shown
