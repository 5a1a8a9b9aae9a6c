"""The service's log, of the event loop and of the workers alike."""

from __future__ import annotations

import logging

from pythonjsonlogger.orjson import OrjsonFormatter


def log_as_json() -> None:
    """Log ours and uvicorn's lines as JSON to standard error."""
    handler = logging.StreamHandler()
    formatter = OrjsonFormatter(
        ["levelname", "name", "message"], rename_fields={"levelname": "level", "name": "logger"}, timestamp="time"
    )
    handler.setFormatter(formatter)
    for name in ("recfunnel", "pipeline", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
