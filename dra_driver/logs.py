"""Logging of the long-running commands: structured, as JSON lines or as text, on stderr.

Modules log with `logging.getLogger(__name__)` and give facts as `extra={"claim": uid}`; what they give becomes a
field here.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FORMATS = ("json", "text")

# What every LogRecord has by itself; all else came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(log_format: str, level: str) -> None:
    """Send the log of the whole process to stderr in one of FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Repeats each retried connection at WARNING; our own clients report the outage once, with the request.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then the facts as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of an exception."""
        facts = "".join(f" {key}={value!s}" for key, value in _facts(record).items())
        line = f"{_time(record):%H:%M:%S.%f}"[:-3] + f" {record.levelname:<7} {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
