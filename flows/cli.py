"""The command line: `recfunnel COMMAND`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.lake import InputError

CONFIGS = Path(__file__).parent / "configs"

app = typer.Typer(
    help="The whole recommendation funnel, from raw logs to ranked lists.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, such as flows/configs/small.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help='Overrides, such as fine.model="star".')
]
Alias = Annotated[str, typer.Option(help="The name by which the service finds its bundle.")]
DataFolder = Annotated[Path, typer.Option(help="The data folder of the runs.")]


def main() -> None:
    """Run a command; a mistake in the input is told in plain words and ends with status 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error[/]  {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


@app.command()
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Run the whole funnel; finished stages whose inputs are unchanged are kept."""
    begun = time.perf_counter()
    from flows.servers import prefect_home
    from pipeline.config import load

    settings = load(config, overrides or [])
    prefect_home(Path(settings.folder))
    from flows.funnel import funnel
    from pipeline.evaluation import report

    summary = funnel(str(config), overrides or [])
    report.terminal(summary["folders"])
    seconds = time.perf_counter() - begun
    print(f"done: report {summary['report']} · MLflow run {summary['run']} · {seconds:.0f} s")


@app.command()
def features(
    config: ConfigFile,
    overrides: Overrides = None,
    explain: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="USER ITEM TIME", help="Show one row's features and the events they were computed from."),
    ] = None,
    domain: Annotated[str, typer.Option(help="The explained row's domain; the log's own by default.")] = "",
) -> None:
    """Make the events and the features, and nothing after them; explain a row of them."""
    from flows.servers import prefect_home
    from pipeline.config import load
    from pipeline.features import explain as explaining

    moment = explaining.moment(explain[2]) if explain else 0
    prefect_home(Path(load(config, overrides or []).folder))
    from flows.features import features_only
    from pipeline.features.store import FeatureStore

    made = features_only(str(config), overrides or [])
    if explain:
        store = FeatureStore.open(made["features"])
        explaining.terminal(explaining.explain(store, made["events"], *explain[:2], moment, domain), store)
        return
    _print_features(**made)


@app.command()
def demo() -> None:
    """Run the demonstration: a simulated market with 100,000 users and 1,000,000 impressions."""
    run(CONFIGS / "demo.toml")


@app.command()
def check_data(config: ConfigFile, overrides: Overrides = None) -> None:
    """Read the configured source against the event contract, and write nothing."""
    from pipeline.config import load
    from pipeline.sources import contract

    settings = load(config, overrides or [])
    found = contract.check(settings.source, settings.contract)
    for name, value in found.items():
        print(f"{name:<32} {value:,}" if isinstance(value, int) else f"{name:<32} {value}")
    print("done: the source keeps the contract")


@app.command(name="report")
def report_(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, such as demo, or its folder.")],
    folder: DataFolder = Path("data"),
) -> None:
    """Print the report of a run's latest finish, and where its page lies."""
    from pipeline.evaluation import report

    latest = next((path for path in (Path(run) / "latest.json", folder / run / "latest.json") if path.exists()), None)
    if latest is None:
        raise InputError(f"{run}: no finished run in {folder / run}; give a run's name or folder, or run it first")
    summary = json.loads(latest.read_text())
    report.terminal({name: Path(path) for name, path in summary["folders"].items()})
    print(f"report {summary['report']} · MLflow run {summary['run']}")


@app.command()
def ui(folder: DataFolder = Path("data")) -> None:
    """Show MLflow's and Prefect's pages side by side until interrupted."""
    from flows.servers import mlflow_ui, prefect_server

    with ExitStack() as servers:
        print(f"MLflow   {servers.enter_context(mlflow_ui(folder))}", flush=True)
        print(f"Prefect  {servers.enter_context(prefect_server(folder))}", flush=True)
        print("Ctrl-C ends both", flush=True)
        _until_interrupted()


@app.command()
def schedule(
    config: ConfigFile,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help="When to run, in UTC.")] = "0 4 * * *",
) -> None:
    """Run the funnel on a schedule, with Prefect's pages open beside it, until interrupted."""
    from flows.servers import prefect_server
    from pipeline.config import load

    settings = load(config, overrides or [])
    with prefect_server(Path(settings.folder)) as address:
        os.environ["PREFECT_API_URL"] = f"{address}/api"
        print(f"Prefect  {address}/deployments", flush=True)
        from flows.schedule import serve

        serve(config, overrides or [], cron)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A benchmark, or `all`.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Sizes and seeds; of `recall` also a published split."),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Small sizes, for a quick look.")] = False,
) -> None:
    """Measure what the README states: a table, then one JSON object of numbers as the last line."""
    from pipeline.bench import BENCHES, splits
    from pipeline.bench.measure import show

    if name not in (*BENCHES, "all"):
        raise InputError(f"{name!r} is no benchmark; it is one of all, {', '.join(BENCHES)}")
    if name == "recall" and options and "=" not in options[0]:
        if options[0] not in splits.SPLITS or len(options) > 1 or small:
            raise InputError(
                f"{' '.join(options)!r} is no published split; give one of {', '.join(splits.SPLITS)}, alone"
            )
        show(options[0], splits.bench(options[0]))
        return
    parts = [option.partition("=") for option in options or []]
    given: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, _, value in parts}
    figures: dict[str, float] = {}
    for one in BENCHES if name == "all" else [name]:
        measure, quick = BENCHES[one]
        measured = measure(**(quick if small else {}), **given)
        figures |= {f"{one}_{key}": value for key, value in measured.items()} if name == "all" else measured
    show(name, figures)


@app.command()
def zoo(
    config: ConfigFile,
    overrides: Overrides = None,
    models: Annotated[str, typer.Option(help="Rankers, separated by commas; all by default.")] = "",
) -> None:
    """Tune and train the rankers side by side, with equal budgets and seeds, and print their leaderboard."""
    from models import RANKERS
    from pipeline.config import load

    settings = load(config, overrides or [])
    chosen = models.split(",") if models else list(RANKERS)
    if unknown := [model for model in chosen if model not in RANKERS]:
        raise InputError(f"--models: {', '.join(unknown)} unknown; choose from {', '.join(RANKERS)}")
    from flows.servers import prefect_home

    prefect_home(Path(settings.folder))
    from flows.zoo import zoo as compete

    compete(str(config), overrides or [], chosen)


@app.command()
def tune(config: ConfigFile, overrides: Overrides = None) -> None:
    """Search `[tune]` for the best settings of the fine ranker, and print them as TOML; goes on where it was."""
    from flows.servers import prefect_home
    from pipeline.config import load

    prefect_home(Path(load(config, overrides or []).folder))
    from flows.tune import tune as search

    search(str(config), overrides or [])


@app.command()
def refresh(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train the champions on, on what the log has grown by, and promote what is better than they are."""
    from flows.servers import prefect_home
    from pipeline.config import load

    prefect_home(Path(load(config, overrides or []).folder))
    from flows.refresh import refresh as go_on

    told = go_on(str(config), overrides or [])
    verdict = "promoted" if told["promoted"] else "the champion stays"
    print(
        f"done: {verdict}, log loss {told['log_loss_champion']:.5f} → {told['log_loss_challenger']:.5f} · "
        f"gain {told['gain']:+.5f} ({told['gain_low']:+.5f} to {told['gain_high']:+.5f}) · MLflow run {told['run']}"
    )


@app.command()
def bundle(
    config: ConfigFile,
    overrides: Overrides = None,
    alias: Alias = "champion",
    roll_back: Annotated[bool, typer.Option("--roll-back", help="Make none; name the one before again.")] = False,
) -> None:
    """Bundle the latest run of a configuration for the service, and let an alias name it."""
    from pipeline.config import load
    from pipeline.serving import registry

    settings = load(config, overrides or [])
    place = Path(settings.folder) / registry.FOLDER
    if roll_back:
        print(f"done: {alias} is {registry.roll_back(place, alias)} again")
        return
    from flows.servers import prefect_home

    prefect_home(Path(settings.folder))
    from flows.bundle import bundle as make

    made = make(str(config), overrides or [], alias)
    print(f"done: {made} · {alias} · recfunnel serve --folder {settings.folder}")


@app.command()
def serve(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help='Of [serve], such as diversity="mmr".')
    ] = None,
    folder: DataFolder = Path("data"),
    alias: Alias = "champion",
    bundle: Annotated[Path | None, typer.Option(help="Serve this bundle, and no other, instead of an alias.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
) -> None:
    """Answer requests from a bundle until interrupted; the page is at the address that is printed."""
    from pipeline.serving import launch

    launch.run(folder, alias, bundle, settings or [], host=host, port=port)


@app.command()
def collect(folder: DataFolder = Path("data"), alias: Alias = "champion") -> None:
    """Write what the service was told since the last time as Parquet of the event contract, for the next training."""
    from pipeline.serving import launch

    made = launch.collect(folder, alias)
    print(f"done: {made}" if made else "done: nothing new was told")


def _print_features(events: Path, features: Path, logged: dict[str, float], made: dict[str, float]) -> None:
    """What the features flow came to: a line for the events and one for the features."""
    table = Table("rows", "days", "users", "items", "fields", "numbers", "folder", width=100)
    days = (logged["last_time"] - logged["first_time"]) / 86_400e6
    counts = (f"{logged[name]:,}" for name in ("users", "items"))
    table.add_row(f"{logged['events']:,}", f"{days:.1f}", *counts, "", "", str(events))
    rows = sum(made[f"rows_{name}"] for name in ("train", "validation", "test"))
    counts = (f"{made[name]:,}" for name in ("users", "items", "fields", "numbers"))
    table.add_row(f"{rows:,}", "", *counts, str(features))
    Console(width=100, highlight=False).print(table)


def _until_interrupted() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("ended")
