"""Answers of HTTP servers as they come over a connection, in one piece or byte by byte."""

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from api.httpreading import Answer, ask

_CHUNKS = b"4;x=y\r\nbody\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b" % _CHUNKS
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        yield ours, theirs


def answered(pair: Pair, answer: bytes, pieces: int = 1) -> Answer:
    ours, theirs = pair

    def send() -> None:
        theirs.recv(1 << 16)
        size = max(1, len(answer) // pieces)
        for start in range(0, len(answer), size):
            theirs.sendall(answer[start : start + size])
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return ask(ours, "server:6443", "/a?b", {"Accept": "application/json"})
    finally:
        thread.join()


def test_the_request_is_as_the_protocol_wants_it(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    ask(ours, "server:6443", "/a?b", {"Accept": "application/json"})

    assert theirs.recv(1000) == b"GET /a?b HTTP/1.1\r\nHost: server:6443\r\nAccept: application/json\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", Answer(200, b"body", True)),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Answer(404, b"", True)),
        (
            CHUNKED,
            Answer(200, b"body0123456789", True),
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 4\r\n\r\nbody",
            Answer(200, b"body", False),
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", Answer(200, b"body", False)),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", Answer(200, b"until the end", False)),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Answer(200, b"ok", True),
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, b"", True)),
    ],
)
def test_an_answer_is_read_however_it_comes(pair: Pair, answer: bytes, expected: Answer, pieces: int) -> None:
    assert answered(pair, answer, pieces) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbod",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbo",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nbody",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"x" * 200_000,
    ],
)
def test_what_is_no_answer_is_an_error(pair: Pair, answer: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        answered(pair, answer)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/\x00", "/\u00e9"])
def test_a_name_that_would_change_the_request_is_refused(pair: Pair, target: str) -> None:
    with pytest.raises(http.client.InvalidURL):
        ask(pair[0], "server", target, {})
