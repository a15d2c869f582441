"""Structured logs: one line per event, as `key=value` for people or JSON for machines.

Requests are logged by endpoint, status, time and size. Headers, queries and bodies never are: they may hold tokens and
pictures.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

log = logging.getLogger("mega.server")


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened, with its numbers."""
    log.log(level, name, extra={"mega": fields})


class _Lines(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {key: _short(value) for key, value in getattr(record, "mega", {}).items()}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self.as_json:
            line = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
            return json.dumps({**line, **({"trace": trace} if trace else {})}, default=str)
        words = [
            stamp,
            record.levelname.lower(),
            record.getMessage(),
            *(f"{key}={value}" for key, value in fields.items()),
        ]
        return " ".join(words) + (f"\n{trace}" if trace else "")


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def configure(kind: str = "text", stream: TextIO | None = None) -> None:
    """Send the program's logs to standard error, as "text" or "json" lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines(kind == "json"))
    for name in ("mega", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("mega").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
