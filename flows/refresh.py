"""L7: the log has grown: the champions are trained on, on what is new, and step back for what beats them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import Task, flow

from flows.features import features
from flows.funnel import judge, register, registered
from flows.rank import rank, train_rankers
from flows.recall import recall, train_routes, weights
from flows.stages import keep_or_make, numbers
from pipeline import config as configuration
from pipeline import lake, tracking
from pipeline.config import Config
from pipeline.evaluation import promotion
from pipeline.lake import InputError
from pipeline.ranking import carry
from pipeline.recall import candidates

CONTINUED = ("two_tower",)
SUFFIX = " refresh"

gate_challenger = Task(promotion.contest, name="gate challenger")


@flow(name="refresh")
def refresh(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Train the champions of this configuration on, on the rows since they were trained, and promote what is better.

    New days are added to the features, new ids to the vocabularies; ids not seen for long leave them. The fine ranker
    and the two-tower go on from the champions, other models are trained anew; vectors and indexes are made again. If
    the fine ranker beats its champion on the test slice, the newest rows, all models become champions; if it does not,
    nothing is registered, and the next refresh goes on from the same champions with all rows since.

    Raises InputError where this configuration has no champion or no row is new.
    """
    settings = configuration.load(Path(config), overrides or [])
    candidates.check(settings.recall)
    resolved = settings.to_dict()
    folder = Path(resolved.pop("folder"))
    with lake.explain_full_disk(folder), tracking.start(folder, settings.name + SUFFIX) as run:
        run.configuration(resolved)
        run.parameters(resolved)
        names = ["fine", *(route for route in CONTINUED if route in settings.recall.routes)]
        champions = {name: champion(settings, name) for name in names}
        settings = shorter(settings)

        events, made = features(settings, run)
        carry.check_new(made, champions["fine"])
        data = lake.read_manifest(events)["fingerprint"]
        run.data(events, data)
        routes = train_routes(settings, made, run, {name: champions[name] for name in names[1:]})
        validation = recall(settings, made, routes, run)
        coarse, fine = train_rankers(settings, made, validation, run, champions["fine"])
        judged = keep_or_make(
            gate_challenger,
            "gate",
            made,
            fine,
            root=settings.root,
            run=run,
            reads=weights(champions["fine"]),
            tell=("log_loss_champion", "log_loss_challenger", "gain_low", "gain_high"),
            beside={"champion": champions["fine"]},
            positive=settings.contract.positive,
            resamples=settings.refresh.resamples,
            seed=settings.seed,
        )
        told = numbers(judged)
        run.log(told)
        if told["promoted"]:
            test = recall(settings, made, routes, run, validation=validation)
            ranked = rank(settings, made, test, coarse, fine, run)
            evaluated = judge(settings, events, made, test, ranked, run)
            register(settings, {**routes, "coarse": coarse, "fine": fine}, evaluated, run, data=data)
    return {"run": run.id, "fine": fine, **told}


def champion(settings: Config, name: str) -> Path:
    """The files of the champion that a run or a refresh of this configuration registered."""
    folder = Path(settings.folder)
    maker = tracking.champion_maker(folder, registered(name))
    if maker is None or maker.removesuffix(SUFFIX) != settings.name:
        told = "there is none" if maker is None else f"that of the run {maker!r} is"
        raise InputError(
            f"{folder}: no champion of {registered(name)} by {settings.name!r}, {told}; recfunnel run first"
        )
    return tracking.champion(folder, registered(name))


def shorter(settings: Config) -> Config:
    """The settings with what `[refresh]` says of training in the places of the fine ranker's and the two-tower's."""
    own = {name: getattr(settings.refresh, name) for name in ("epochs", "batch_size", "learning_rate")}
    options = settings.recall.options
    routes = {name: {**options.get(name, {}), **own} for name in CONTINUED}
    return replace(
        settings,
        fine=replace(settings.fine, **own),
        recall=replace(settings.recall, options={**options, **routes}),
    )
