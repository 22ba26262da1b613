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


@pytest.mark.parametrize("text", [b"", b"<html>", b"[" * LEVELS, b'{"a": "', b"]" * LEVELS])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"at line 1 column \d+"):
        read_json(text)
