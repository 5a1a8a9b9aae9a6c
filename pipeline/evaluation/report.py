"""The report of a run: a page that needs nothing but a browser, and the same tables for the terminal."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from pipeline.evaluation import plots
from pipeline.evaluation.funnel import read_tables
from pipeline.evaluation.losses import LOSSES
from pipeline.evaluation.replay import EVERYTHING
from pipeline.features.store import SLICES, rows_of_slices

UNDEFINED = "—"
EXAMPLES = 5
SHOWN = 10
HISTORY = 30
PAGE_WIDTH = 100
WIDE = 10

Folders = dict[str, Path]


@dataclass(frozen=True)
class Table:
    """A table as it is read: everything is text already. The first `labels` columns are names, the rest numbers."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1


@dataclass(frozen=True)
class Gate:
    """A stage's verdict in one line: it is passed where it beats leaving it out by recall and by NDCG."""

    name: str
    comparison: str
    passed: bool
    verdict: str


@dataclass(frozen=True)
class Example:
    """One request and what the funnel answered."""

    user: str
    domain: str
    time: str
    history: str
    held_out: str
    table: Table
    hits: list[bool]


def write(folders: Folders, out: Path, *, config: dict[str, Any]) -> Path:
    """Write `report.html` to `out` and return its path; the same input gives the same bytes.

    `folders`: events, features, recall (of the test slice), ranked, evaluation. `config`: the resolved configuration.
    """
    tables = read_tables(folders["evaluation"])
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html")
    page = out / "report.html"
    page.write_text(
        template.render(
            name=config["name"],
            model=config["fine"]["model"],
            source=config["source"]["kind"],
            dates=_dates(folders),
            gates=gate_verdicts(tables),
            headline=headline(tables),
            data=data_table(folders),
            tables=report_tables(tables),
            pictures=_pictures(folders["evaluation"], tables),
            examples=examples(folders, config["contract"]["positive"], config["features"]["behaviours"]),
            config=json.dumps(config, indent=1, sort_keys=True),
        ),
        encoding="utf-8",
    )
    return page


def terminal(folders: Folders) -> None:
    """Print the report's tables, none wider than 100 columns."""
    tables = read_tables(folders["evaluation"])
    console = Console(highlight=False)
    console.width = min(console.width, PAGE_WIDTH) if console.is_terminal else PAGE_WIDTH
    shown = [data_table(folders), *(table for section in report_tables(tables).values() for table in section)]
    for table in shown:
        console.print(Text(f"\n{table.title}", style="bold"))
        console.print(_grid(table), end="")
        console.print(Text(table.note, style="dim"))
    console.print()
    for gate in gate_verdicts(tables):
        passed = Text("passed", style="green") if gate.passed else Text("NOT passed", style="red")
        console.print(Text.assemble((f"gate {gate.name}: ", "bold"), passed, f": {gate.verdict}"))


def headline(tables: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers to read first: name, value, and what to compare it with."""
    settled, metrics = tables["settled"], tables["settled"]["metrics"]
    k, positive = max(settled["cutoffs"]), settled["positive"]
    rivals = {"oracle": f"auc_{positive}_oracle", "popularity": f"auc_{positive}_popularity"}
    against = " · ".join(f"{name} {_number(metrics.get(key))}" for name, key in rivals.items() if key in metrics)
    return [
        (f"Recall@{k} of the final list", _percent(metrics.get(f"final_recall_{k}")),
         f"recall order {_percent(metrics.get(f'merge_recall_{k}'))}"),
        (f"NDCG@{k} of the final list", _number(metrics.get(f"final_ndcg_{k}")),
         f"recall order {_number(metrics.get(f'merge_ndcg_{k}'))}"),
        (f"AUC of {positive}", _number(metrics.get(f"auc_{positive}")), against),
        ("Cost of the cascade", _signed(metrics.get("cascade_loss")), "NDCG that fine-ranking everything would add"),
    ]  # fmt: skip


def gate_verdicts(tables: dict[str, Any]) -> list[Gate]:
    """Gate by gate, whether the stage beats leaving it out; whatever is not shown by both metrics is not passed."""
    gates = []
    for name, group in groupby(tables["gates"].iter_rows(named=True), key=lambda row: row["gate"]):
        rows = list(group)
        passed = all(row["verdict"] == "beats" for row in rows)
        told = ", ".join(
            f"{row['verdict']} by {row['metric']}@{row['k']} ({_signed(row['difference'])}, "
            f"{_signed(row['low'])} to {_signed(row['high'])})"
            for row in rows
        )
        gates.append(Gate(name, rows[0]["comparison"], passed, told))
    return gates


def data_table(folders: Folders) -> Table:
    """Rows of the log's tables, rows of the slices, and the rejected rows by reason."""
    events = folders["events"]
    rows = [
        (name, _count(pq.read_metadata(events / f"{name}.parquet").num_rows)) for name in ("events", "users", "items")
    ]
    shown = rows_of_slices(folders["features"])
    rows += [(f"{name} impressions", _count(shown[name])) for name in SLICES]
    rejected = pl.read_parquet(events / "rejected.parquet").group_by("reason").len().sort("reason")
    rows += [(f"rejected: {reason}", _count(rows_)) for reason, rows_ in rejected.iter_rows()]
    return Table("The log", f"{_dates(folders)}.", ("table", "rows"), rows)


def report_tables(tables: dict[str, Any]) -> dict[str, list[Table]]:
    """Every table of the report, by section."""
    return {
        "stages": [_stages(tables), *_values(tables)],
        "losses": [_losses(tables, "domain"), _losses(tables, "route")],
        "gates": [_gates(tables)],
        "domains": [_domains(tables), _routes_by_domain(tables)],
        "routes": [_routes(tables)],
        "consistency": [_consistency(tables)],
        "tasks": [_tasks(tables), _tasks_by_domain(tables), _fields(tables)],
    }


def examples(folders: Folders, positive: str, behaviours: dict[str, str]) -> list[Example]:
    """Requests evenly spaced over the test requests in order of domain, not chosen for their looks."""
    lost = pl.read_parquet(folders["evaluation"] / "lost.parquet")
    requests = pl.read_parquet(folders["recall"] / "requests.parquet").drop("domain")
    asked = lost.select("request", "domain").unique().join(requests, on="request").sort("domain", "request")
    chosen = np.unique(((np.arange(EXAMPLES) + 0.5) / EXAMPLES * len(asked)).astype(int))
    items = _item_names(folders)
    users = pl.read_parquet(folders["features"] / "users.parquet", columns=["user_id"])["user_id"]
    behaviour = next((name for name, task in behaviours.items() if task == positive), next(iter(behaviours)))
    past = pl.scan_parquet(folders["features"] / f"behaviour_{behaviour}.parquet")
    ranked = pl.scan_parquet(folders["ranked"] / "ranked.parquet").filter("shown", pl.col("rank") <= SHOWN)
    made = []
    for row in asked[chosen].iter_rows(named=True):
        before = past.filter(pl.col("user") == row["user"], pl.col("time") < row["time"])
        categories = items["category"].gather(before.select("item").collect()["item"].tail(HISTORY))
        counts = categories.value_counts(sort=False).sort(["count", "category"], descending=[True, False])
        fates = lost.filter(pl.col("request") == row["request"])
        wanted = fates["item"].to_list()
        answer = ranked.filter(pl.col("request") == row["request"]).sort("rank").collect()
        made.append(
            Example(
                user=str(users[row["user"]]),
                domain=row["domain"],
                time=_moment(row["time"]),
                history=", ".join(f"{name or UNDEFINED} ×{n}" for name, n in counts.iter_rows()) or "none",
                held_out=", ".join(_fate(*one) for one in _fates(fates).iter_rows()),
                table=_answer(answer, items, wanted),
                hits=[item in wanted for item in answer["item"]],
            )
        )
    return made


def _fates(fates: pl.DataFrame) -> pl.DataFrame:
    return fates.group_by("lost").len().sort("lost", descending=True)


def _fate(lost: str, count: int) -> str:
    return f"{count} shown" if lost == "shown" else f"{count} lost at {lost}"


def _answer(answer: pl.DataFrame, items: pl.DataFrame, wanted: Sequence[int]) -> Table:
    head = ("#", "item", "category", "author", "route", "in merge", "coarse", "fine", "score", "held out")
    rows = []
    for row in answer.iter_rows(named=True):
        item = items.row(row["item"], named=True)
        names = [
            str(item[name]) if item[name] is not None else UNDEFINED for name in ("item_id", "category", "author_id")
        ]
        places = [str(row[name]) for name in ("position", "coarse_rank", "fine_rank")]
        mark = "✓" if row["item"] in wanted else ""
        rows.append((str(row["rank"]), *names, row["route"], *places, f"{row['fused']:.4f}", mark))
    return Table("", "", head, rows, labels=5)


def _item_names(folders: Folders) -> pl.DataFrame:
    """item_id, category and author_id in the order of item numbers; null where the log does not tell."""
    ids = pl.read_parquet(folders["features"] / "items.parquet", columns=["item_id"])
    table = pl.read_parquet(folders["events"] / "items.parquet")
    known = [name for name in ("category", "author_id") if name in table.columns]
    absent = [pl.lit(None, pl.String).alias(name) for name in ("category", "author_id") if name not in known]
    return ids.join(table.select("item_id", *known), on="item_id", how="left", maintain_order="left").with_columns(
        absent
    )


def _stages(tables: dict[str, Any]) -> Table:
    cutoffs = tables["settled"]["cutoffs"]
    head = ("stage", "items", "recall", *(f"{metric}@{k}" for metric in ("R", "N", "hit") for k in cutoffs), "MRR")
    rows = [
        (
            row["stage"],
            f"{row['size']:,.0f}",
            _number(row["recall"]),
            *(_number(row[f"{metric}_{k}"]) for metric in ("recall", "ndcg", "hit") for k in cutoffs),
            _number(row["mrr"]),
        )
        for row in tables["stages"].iter_rows(named=True)
    ]
    note = (
        "Held-out positives of the test requests, means over requests. items: a request; recall: in the whole list; "
        f"R@k recall, N@k NDCG, hit@k hit rate. The union is a set, without an order. “{EVERYTHING}” is no stage: it "
        "is what the fine ranker would make of the whole merge."
    )
    return Table("Stages", note, head, rows)


def _values(tables: dict[str, Any]) -> list[Table]:
    if "values" not in tables:
        return []
    positive = tables["settled"]["positive"]
    note = f"Mean true probability of {positive} of the first ten, which only a simulated log can tell."
    rows = [(order, _number(value, 4)) for order, value in tables["values"].iter_rows()]
    return [Table("True value of lists", note, ("order of the merge", f"P({positive})"), rows)]


def _losses(tables: dict[str, Any], by: str) -> Table:
    other = "route" if by == "domain" else "domain"
    table = tables["losses"].filter(pl.col(other) == "all")
    rows = []
    for name, group in groupby(table.iter_rows(named=True), key=lambda row: row[by]):
        stages = list(group)
        rows.append(
            (name, _count(sum(row["positives"] for row in stages)), *(_percent(row["share"]) for row in stages))
        )
    title = "Where held-out positives are lost, by " + ("domain" if by == "domain" else "first route")
    note = "" if by == "domain" else "A positive belongs to the route that gave it to the merge; “none” had no giver."
    return Table(title, note, (by, "held out", *LOSSES), rows)


def _gates(tables: dict[str, Any]) -> Table:
    head = ("gate", "metric", "verdict", "with", "without", "difference", "low", "high")
    rows = [
        (
            row["gate"],
            f"{row['metric']}@{row['k']}",
            row["verdict"],
            _number(row["with"], 4),
            _number(row["without"], 4),
            *(_signed(row[name]) for name in ("difference", "low", "high")),
        )
        for row in tables["gates"].iter_rows(named=True)
    ]
    note = "With the stage against leaving it out; low and high: paired bootstrap over users, 95 %."
    return Table("Gates", note, head, rows, labels=3)


def _domains(tables: dict[str, Any]) -> Table:
    k = max(tables["settled"]["cutoffs"])
    table = tables["domains"]
    stages = ("union", "merge", "kept", "final")
    rows = []
    for domain in table["domain"].unique().sort():
        of = {row["stage"]: row for row in table.filter(pl.col("domain") == domain).iter_rows(named=True)}
        final = of["final"]
        rows.append(
            (
                domain,
                _count(final["requests"]),
                _count(final["positives"]),
                *(_number(of[stage]["recall"]) for stage in stages),
                *(_number(final[name]) for name in (f"ndcg_{k}", f"hit_{k}", "mrr")),
            )
        )
    head = ("domain", "requests", "positives", *stages, f"NDCG@{k}", f"hit@{k}", "MRR")
    return Table("Domains", "Recall of each stage's whole list; NDCG, hit rate and MRR of the final list.", head, rows)


def _routes_by_domain(tables: dict[str, Any]) -> Table:
    table = tables["domains"].filter(pl.col("stage").str.starts_with("route "))
    domains = table["domain"].unique().sort().to_list()
    rows = []
    for route in table["stage"].unique(maintain_order=True):
        recall = dict(table.filter(pl.col("stage") == route).select("domain", "recall").iter_rows())
        rows.append((route.removeprefix("route "), *(_number(recall[domain]) for domain in domains)))
    return Table("Recall of each route by domain", "Of all that the route gives.", ("route", *domains), rows)


def _routes(tables: dict[str, Any]) -> Table:
    cutoffs = tables["settled"]["cutoffs"]
    head = ("route", "items", "recall", *(f"R@{k}" for k in cutoffs), "only it", "of merge", "of final", "shown")
    rows = [
        (
            row["route"],
            f"{row['size']:,.0f}",
            *(_number(row[name]) for name in ("recall", *(f"recall_{k}" for k in cutoffs))),
            *(_percent(row[name]) for name in ("only", "merge_share", "final_share")),
            _count(row["final_positives"]),
        )
        for row in tables["routes"].iter_rows(named=True)
    ]
    note = (
        "only it: share of held-out positives that no other route gave; of merge, of final: share of places, by first "
        "giver; shown: held-out positives in the final lists."
    )
    return Table("Routes", note, head, rows)


def _consistency(tables: dict[str, Any]) -> Table:
    metrics = tables["settled"]["metrics"]
    columns = ("fine_20", "fine_50", "ish", "ash", "chance")
    rows = [
        (
            f"{row['k']}{' (keep)' if row['k'] == tables['settled']['keep'] else ''}",
            *(_percent(row[c]) for c in columns),
        )
        for row in tables["consistency"].iter_rows(named=True)
    ]
    note = (
        "What the coarse ranker's first k hold: of the fine ranker's top 20 and 50, of the held-out positives of the "
        "request (ISH) and of all its user's domains (ASH), those that the merge lacks included; by chance: of all "
        "merged. Kendall's τ of the two orders is "
        f"{_number(metrics.get('coarse_fine_tau'))}."
    )
    return Table("Coarse against fine", note, ("k", "fine top 20", "fine top 50", "ISH", "ASH", "by chance"), rows)


def _tasks(tables: dict[str, Any]) -> Table:
    head = ("task", "exposure", "rows", "positives", "observed", "predicted", "ratio", "AUC", "GAUC", "log loss", "ECE")
    rows = [
        (
            row["task"],
            row["exposure"],
            _count(row["rows"]),
            _count(row["positives"]),
            _percent(row["observed"], 2),
            _percent(row["predicted"], 2),
            *(_number(row[name]) for name in ("ratio", "auc", "gauc", "log_loss", "ece")),
        )
        for row in tables["tasks"].filter(pl.col("domain") == "all").iter_rows(named=True)
    ]
    note = "Test impressions: all of them, and those exposed at random. ratio: Σp / Σy; ECE over ten equal bins."
    return Table("Tasks", note, head, rows, labels=2)


def _tasks_by_domain(tables: dict[str, Any]) -> Table:
    table = tables["tasks"].filter(pl.col("domain") != "all", pl.col("exposure") == "all")
    tasks = table["task"].unique(maintain_order=True).to_list()
    rows = []
    for domain, group in groupby(table.iter_rows(named=True), key=lambda row: row["domain"]):
        of = {row["task"]: row for row in group}
        numbers = (_number(of[task][name]) for task in tasks for name in ("auc", "ratio"))
        rows.append((domain, _count(of[tasks[0]]["rows"]), *numbers))
    head = ("domain", "rows", *(text for task in tasks for text in (f"AUC {task}", "ratio")))
    return Table("Tasks by domain", "", head, rows)


def _fields(tables: dict[str, Any]) -> Table:
    table = tables["fields"]
    tasks = table["task"].unique(maintain_order=True).to_list()
    rows = []
    for field, values in table.select("field", "values").unique(maintain_order=True).iter_rows():
        error = dict(table.filter(pl.col("field") == field).select("task", "error").iter_rows())
        rows.append((field, _count(values), *(_percent(error[task]) for task in tasks)))
    note = "Field-RCE: relative gap of Σp and Σy within each value of a field, weighted by impressions."
    return Table("Calibration by field", note, ("field", "values", *tasks), rows)


def _grid(table: Table) -> Grid:
    gap = 1 if len(table.head) <= WIDE else 0
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False)
    for number, name in enumerate(table.head):
        grid.add_column(
            Text(name), justify="left" if number < table.labels else "right", overflow="ellipsis", no_wrap=True
        )
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid


def _pictures(evaluation: Path, tables: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Each plot as data URIs, for a light page (as evaluation drew it) and for a dark one."""
    pictures = {}
    for name, figure in plots.draw(tables, plots.DARK).items():
        plots.save(figure, dark := io.BytesIO())
        pictures[name] = (_uri((evaluation / f"{name}.png").read_bytes()), _uri(dark.getvalue()))
    return pictures


def _uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _dates(folders: Folders) -> str:
    slices = json.loads((folders["features"] / "slices.json").read_text())
    begin, validation, test, end = (_moment(slices[name]) for name in ("begin", "validation", "test", "end"))
    return f"{begin} to {end} UTC; validation from {validation}, test from {test}"


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def _defined(value: float | None, form: Callable[[float], str]) -> str:
    return UNDEFINED if value is None or np.isnan(value) else form(value)


def _number(value: float | None, digits: int = 3) -> str:
    return _defined(value, lambda number: f"{number:.{digits}f}")


def _percent(value: float | None, digits: int = 1) -> str:
    return _defined(value, lambda number: f"{number:.{digits}%}")


def _signed(value: float | None) -> str:
    return _defined(value, lambda number: f"{number:+.4f}")


def _count(value: int) -> str:
    return f"{value:,}"
