"""A run's models, indexes and tables → one bundle that the service answers from."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import Task, flow

from pipeline import config as configuration
from pipeline import tracking
from pipeline.config import Config
from pipeline.serving import bundle as bundles
from pipeline.serving import registry
from pipeline.serving.engine import Engine


def write_checked(place: Path, settings: Config) -> Path:
    """Write the bundle of the configuration's latest run, and open it as the service does: one that does not come to
    the scores of batch scoring is an `InputError`."""
    made = bundles.write(place, bundles.Made.of_run(settings.root), settings)
    Engine(made).close()
    return made


write_bundle = Task(write_checked, name="write bundle")


@flow(name="bundle")
def bundle(config: str, overrides: list[str], alias: str) -> Path:
    """Bundle the latest run of a configuration and let `alias` name it. Returns the bundle's folder."""
    settings = configuration.load(Path(config), overrides)
    place = Path(settings.folder) / registry.FOLDER
    begun = time.perf_counter()
    with tracking.start(Path(settings.folder), f"{settings.name} bundle") as run:
        made = write_bundle(place, settings)
        registry.promote(place, alias, made.name)
        run.tag(bundle=made.name, alias=alias)
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        run.log({"bytes": size, "seconds": time.perf_counter() - begun})
    return made
