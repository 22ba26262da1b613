"""Reads JSON of the API server, however deep somebody has nested it. Used by `httpkube`.

Every parser stops at some depth: Python's at its recursion limit, pydantic's at 200. But the parameters of a claim, of
any driver, may be nested 5,000 levels deep, within the 10 KiB that the API server takes of them; and one object that
cannot be read would take a whole list with it.
"""

import re
from typing import Any, Final

from pydantic_core import from_json

DEEPEST: Final = 100
"""Levels that are read. What Kubernetes itself nests stays far below."""

_TOKEN: Final = re.compile(rb'"(?:[^"\\]+|\\.)*"|[\[\]{}]', re.DOTALL)


def read_json(text: bytes) -> Any:
    """Return what a JSON text says; whatever lies deeper than `DEEPEST` levels is read as null.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        shallow = _cut(text)
        if shallow == text:
            raise
        return from_json(shallow, cache_strings="keys")


def _cut(text: bytes) -> bytes:
    kept, begin, depth = [], 0, 0
    for token in _TOKEN.finditer(text):
        bracket = token[0]
        if bracket in b"[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept += [text[begin : token.start()], b"null"]
        elif bracket in b"]}":
            if depth == DEEPEST + 1:
                begin = token.end()
            depth -= 1
    return b"".join([*kept, text[begin:]])
