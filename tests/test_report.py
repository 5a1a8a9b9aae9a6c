from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from funnel_tables import TASKS, Folders, write_run

from pipeline.config import Contract, Evaluation, load
from pipeline.evaluation import report
from pipeline.evaluation.funnel import evaluate, read_tables

CONFIG = load(None, ['name="<b>run</b>"', 'contract.tasks=["click", "like"]']).to_dict()
VOID = {"meta", "img", "source", "link", "br"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run = write_run(tmp_path_factory.mktemp("run"), users=15)
    inputs = (run.events, run.features, run.recall, run.ranked, run.out)
    evaluate(*inputs, settings=Evaluation(resamples=100), contract=Contract(tasks=TASKS), keep=20)
    return as_folders(run)


def as_folders(run: Folders) -> dict[str, Path]:
    return {name: getattr(run, name) for name in ("events", "features", "recall", "ranked")} | {"evaluation": run.out}


@pytest.fixture(scope="module")
def page(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write(folders, tmp_path_factory.mktemp("page"), config=CONFIG).read_text()


class Reader(HTMLParser):
    """Collects the cells of all tables and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_page_is_well_formed_and_holds_every_table(page: str, folders: dict[str, Path]):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    tables = report.report_tables(read_tables(folders["evaluation"]))
    for section in tables.values():
        for table in section:
            for row in table.rows:
                assert len(row) == len(table.head)
                assert set(row) <= set(reader.cells)


def test_the_page_needs_no_network(page: str):
    addresses = re.findall(r'(?:src|href|srcset)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert "url(" not in page
    assert "<script" not in page
    assert page.count("prefers-color-scheme: dark") == 1 + 6


def test_every_link_has_its_target(page: str):
    targets = re.findall(r'href="#([^"]*)"', page)
    assert all(f'id="{target}"' in page for target in targets)


def test_names_from_data_are_escaped(page: str):
    assert "<b>run</b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "&lt;a" in page
    assert "<a1>" not in page
    assert "c&amp;" in page


def test_same_input_same_bytes(page: str, folders: dict[str, Path], tmp_path: Path):
    assert report.write(folders, tmp_path, config=CONFIG).read_text() == page


def test_a_gate_that_is_not_passed_is_said_to_be(page: str, folders: dict[str, Path]):
    gates = report.gate_verdicts(read_tables(folders["evaluation"]))
    assert [gate.name for gate in gates] == ["merge", "coarse", "coarse order", "fine"]
    verdicts = pl.read_parquet(folders["evaluation"] / "gates.parquet")
    for gate in gates:
        of = verdicts.filter(pl.col("gate") == gate.name)["verdict"].to_list()
        assert gate.passed == (of == ["beats", "beats"])
    assert not gates[0].passed
    assert ">not passed<" in page
    assert f"{sum(gate.passed for gate in gates)} of 4 gates passed" in page


def test_examples_are_the_lists_that_were_ranked(folders: dict[str, Path]):
    shown = report.examples(folders, "click", {"liked": "like", "clicked": "click"})
    assert len(shown) == 5
    ranked = pl.read_parquet(folders["ranked"] / "ranked.parquet").filter("shown")
    positives = pl.read_parquet(folders["recall"] / "positives.parquet")
    for example in shown:
        user = int(example.user.removeprefix("u"))
        requests = pl.read_parquet(folders["recall"] / "requests.parquet").filter(pl.col("user") == user)
        lists = {
            tuple(f"i{item}" for item in ranked.filter(pl.col("request") == request).sort("rank")["item"]): request
            for request in requests["request"]
        }
        request = lists[tuple(row[1] for row in example.table.rows)]
        wanted = positives.filter(pl.col("request") == request)["item"].to_list()
        assert example.hits == [int(row[1][1:]) in wanted for row in example.table.rows]
        assert [row[-1] == "✓" for row in example.table.rows] == example.hits
        assert sum(int(part.split()[0]) for part in example.held_out.split(", ")) == len(wanted)


def test_a_log_without_categories_and_authors_still_has_examples(folders: dict[str, Path], tmp_path: Path):
    items = pl.read_parquet(folders["events"] / "items.parquet").select("item_id", "published")
    items.write_parquet(tmp_path / "items.parquet")
    shown = report.examples({**folders, "events": tmp_path}, "click", {"clicked": "click"})
    assert shown[0].table.rows[0][2:4] == ("—", "—")


def test_the_terminal_prints_the_same_numbers_within_100_columns(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    report.terminal(folders)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    words = set(printed.split())
    for section in report.report_tables(read_tables(folders["evaluation"])).values():
        for table in section:
            for row in table.rows:
                assert set(row[table.labels :]) <= words
    assert "gate merge: NOT passed" in printed


def test_undefined_values_are_dashes():
    assert report._number(None) == report._percent(float("nan")) == report._signed(None) == "—"
