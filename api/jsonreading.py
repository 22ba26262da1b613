"""Reads JSON of the API server, however deep somebody has nested it. Used by `httpkube`.

Every parser stops at some depth: Python's at its recursion limit, pydantic's at 200. But the parameters of a claim, of
any driver, may be nested 5,000 levels deep, within the 10 KiB that the API server takes of them. It also takes, and
hands out, text there that is none: half of a surrogate pair, bytes that are no UTF-8. One object that cannot be read
would take a whole list with it.
"""

import re
from typing import Any, Final

from pydantic_core import from_json

DEEPEST: Final = 100
"""Levels that are read. What Kubernetes itself nests stays far below."""

# No choice of where a part ends: what is no JSON (a proxy's page with an odd quote) must not be tried in all ways.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_ESCAPED: Final = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F].{2})|.)"
)
_NO_SIGN: Final = r"\ufffd"
"""What Go reads in the place of what is no text."""


def read_json(text: bytes) -> Any:
    """Return what a JSON text says; whatever lies deeper than `DEEPEST` levels is read as null, and no text as U+FFFD.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        mended = _cut(_as_text(text))
        if mended == text:
            raise
        return from_json(mended, cache_strings="keys")


def _as_text(text: bytes) -> bytes:
    """Return JSON with another sign for what is no text: bytes beyond UTF-8, and halves of surrogate pairs."""

    def mend(found: re.Match[str]) -> str:
        return _NO_SIGN if found[2] else found[0]

    return _ESCAPED.sub(mend, text.decode(errors="replace")).encode()


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
