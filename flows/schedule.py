"""The daily funnel on a schedule."""

from __future__ import annotations

from pathlib import Path

from flows.funnel import funnel


def serve(config: Path, overrides: list[str], cron: str) -> None:
    """Serve the funnel until interrupted: it runs at the times of `cron`, and on demand from Prefect's UI, where its
    parameters are shown and can be changed for a single run."""
    funnel.serve(
        name="daily",
        cron=cron,
        parameters={"config": str(config), "overrides": overrides},
        description="The whole funnel, from raw logs to ranked lists",
        limit=1,
    )
