"""Logging: facts given by the code become fields that people and machines can search."""

import json
import logging

from dra_driver.logs import JSONFormatter, TextFormatter


def _record(**extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": "prepared %s", "args": ("it",), "levelname": "INFO", "name": "agent"})
    record.created = 0.25
    vars(record).update(extra)
    return record


def test_json_lines_carry_time_level_and_facts() -> None:
    assert json.loads(JSONFormatter().format(_record(claim="u-1", took_s=0.5))) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "agent",
        "message": "prepared it",
        "claim": "u-1",
        "took_s": 0.5,
    }


def test_text_lines_end_with_the_facts() -> None:
    assert TextFormatter().format(_record(claim="u-1")) == "00:00:00.250 INFO    prepared it claim=u-1"


def test_an_exception_is_shown_in_both_forms() -> None:
    try:
        int("broken")
    except ValueError as error:
        record = _record(exc_info=(ValueError, error, error.__traceback__))
    assert "ValueError: invalid literal" in json.loads(JSONFormatter().format(record))["exception"]
    assert TextFormatter().format(record).endswith("base 10: 'broken'")
