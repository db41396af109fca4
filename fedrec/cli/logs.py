"""Logs of the long-running commands, on standard error."""

from __future__ import annotations

import datetime
import json
import logging
import sys

from fedrec.errors import ConfigError


def log_to_stderr(kind: str) -> None:
    """One line a record; Flower's own and web requests' are left out.

    Args:
        kind: ``text`` or ``json``.
    Raises:
        ConfigError: another kind.
    """
    if kind not in ("text", "json"):
        raise ConfigError(f"--log {kind}: give text or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if kind == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("fedrec").setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.setLevel(logging.ERROR)


class _Text(logging.Formatter):
    """One line a record, whatever words of others are in it."""

    def format(self, record: logging.LogRecord) -> str:
        message = "".join(char if char.isprintable() else " " for char in record.getMessage())
        text = f"{_time(record)} {record.levelname.lower():7s} {message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
