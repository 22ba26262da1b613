"""JSON that somebody has nested as deep as the API server takes it."""

import json

import pytest

from api.jsonreading import DEEPEST, read_json

LEVELS = 5_000


def test_what_is_nested_too_deep_hides_nothing_else() -> None:
    bracket = json.dumps('of "]" and "\\\\": [[{')
    deep = "[" * LEVELS + bracket + "]" * LEVELS
    text = f'{{"items": [{{"before": {bracket}, "deep": {deep}, "after": {bracket}}}, {{"other": {{}}}}]}}'
    (first, other) = read_json(text.encode())["items"]
    assert first["before"] == first["after"] == json.loads(bracket)
    assert other == {"other": {}}
    levels, at = 0, first["deep"]
    while at:
        levels, (at,) = levels + 1, at
    assert (levels, at) == (DEEPEST - 3, None)


def test_objects_are_cut_as_lists_are() -> None:
    text = '{"a":' * LEVELS + "1" + "}" * LEVELS
    at, levels = read_json(text.encode()), 0
    while at is not None:
        at, levels = at["a"], levels + 1
    assert levels == DEEPEST


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\ud800", "\ufffd"),
        (rb"\uDC00 \uD83D\uDE00 \uD83D", "\ufffd \U0001f600 \ufffd"),
        (rb"\uD83D\uD83D\uDE00", "\ufffd\U0001f600"),
        (rb"\\ud800 \u00e9 \ud800", "\\ud800 \u00e9 \ufffd"),
        (b"\xff \xed\xa0\x80", "\ufffd \ufffd\ufffd\ufffd"),
    ],
)
def test_what_is_no_text_hides_nothing_else(written: bytes, read: str) -> None:
    """Of surrogate pairs there may be halves, which the API server takes and hands out as they are; other bytes too."""
    assert read_json(b'{"%b": 1, "items": ["%b", "after"]}' % (written, written)) == {read: 1, "items": [read, "after"]}


def test_a_page_with_an_odd_quote_is_refused_at_once() -> None:
    page = b'<a href="x">it is 5" wide' + b" and says much" * 10_000
    with pytest.raises(ValueError, match=r"at line 1 column 1"):
        read_json(page)


@pytest.mark.parametrize("text", [b"", b"<html>", b"[" * LEVELS, b'{"a": "', b"]" * LEVELS])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"at line 1 column \d+"):
        read_json(text)
