"""Asks one question over an open HTTP/1.1 connection and reads its answer: RFC 9112, as far as a GET needs it.

Called by KeptConnections. The standard library reads headers as those of an e-mail, which takes longer than all the
rest of a GET of a claim.
"""

import http.client
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

_PART_BYTES = 1 << 16
_MOST_HEADER_BYTES = 1 << 16
_NOT_VISIBLE = re.compile(r"[^!-~]")


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes
    reusable: bool
    """Whether the connection can take another request."""
    retry_after: str | None = None
    """What the server says of when to come again, as it says it."""


def ask(
    connection: socket.socket, host: str, target: str, headers: Mapping[str, str], end_s: float | None = None
) -> Answer:
    """Send a GET and return its answer; see `send` and `read_answer`."""
    send(connection, host, target, headers)
    return read_answer(connection, end_s)


def send(connection: socket.socket, host: str, target: str, headers: Mapping[str, str]) -> None:
    """Send a GET.

    Args:
        connection: open, and with nothing left to read on it.
        host: for the Host header.
        target: path and query.
        headers: beside Host.

    Raises:
        OSError: the connection broke.
        http.client.HTTPException: the target is not one.
    """
    if _NOT_VISIBLE.search(target):
        raise http.client.InvalidURL(f"{target!r} has a blank or a control character")
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header has a line break")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def read_answer(connection: socket.socket, end_s: float | None = None) -> Answer:
    """Read the answer to what was sent.

    Args:
        connection: a request was sent on it.
        end_s: when all of the answer must be there, by the monotonic clock; None: the connection's timeout counts.

    Raises:
        OSError: the connection broke, or the answer did not come in time.
        http.client.HTTPException: what came is not an answer.
    """
    return _Reader(connection, end_s).answer()


class _Reader:
    """Reads from a connection, with what it has read too much in hand."""

    def __init__(self, connection: socket.socket, end_s: float | None) -> None:
        self._connection = connection
        self._end_s = end_s
        self._rest = b""

    def answer(self) -> Answer:
        status, version, headers = self._head()
        while status // 100 == 1:  # "wait": the answer is still to come
            status, version, headers = self._head()
        later = headers[b"retry-after"].decode("latin-1") if b"retry-after" in headers else None
        closes = version == b"HTTP/1.0" or b"close" in headers.get(b"connection", b"").lower()
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            return Answer(status, self._chunks(), not closes, later)
        if b"content-length" in headers:
            return Answer(status, self._take(_number(headers[b"content-length"], 10)), not closes, later)
        if status in {204, 304}:
            return Answer(status, b"", not closes, later)
        return Answer(status, self._all(), False, later)

    def _head(self) -> tuple[int, bytes, Mapping[bytes, bytes]]:
        first, *lines = self._until(b"\r\n\r\n").split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise http.client.BadStatusLine(repr(first))
        fields = (line.partition(b":") for line in lines)
        return int(rest[:3]), version, {name.lower(): value.strip() for name, _, value in fields}

    def _chunks(self) -> bytes:
        parts = []
        while length := _number(self._until(b"\r\n").partition(b";")[0], 16):
            parts.append(self._take(length))
            self._until(b"\r\n")
        while self._until(b"\r\n"):  # trailers
            pass
        return b"".join(parts)

    def _until(self, end: bytes) -> bytes:
        """Return what comes before an end mark, and pass over the mark."""
        while (position := self._rest.find(end)) < 0:
            if len(self._rest) > _MOST_HEADER_BYTES:
                raise http.client.LineTooLong("header")
            self._rest += self._more()
        found, self._rest = self._rest[:position], self._rest[position + len(end) :]
        return found

    def _take(self, length: int) -> bytes:
        parts, missing = [self._rest], length - len(self._rest)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        whole = b"".join(parts)
        self._rest = whole[length:]
        return whole[:length]

    def _all(self) -> bytes:
        parts = [self._rest]
        while part := self._part():
            parts.append(part)
        return b"".join(parts)

    def _more(self) -> bytes:
        part = self._part()
        if not part:
            raise http.client.RemoteDisconnected("the server closed the connection within an answer")
        return part

    def _part(self) -> bytes:
        # A server that sends a little now and then would keep a limit for each part for ever.
        if self._end_s is not None:
            left_s = self._end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left_s)
        return self._connection.recv(_PART_BYTES)


def _number(text: bytes, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError as error:
        raise http.client.BadStatusLine(f"length {text!r}") from error
    if number < 0:
        raise http.client.BadStatusLine(f"length {text!r}")
    return number
