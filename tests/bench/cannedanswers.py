"""A stand-in of the API server that costs next to nothing: answers that are ready as bytes, sent by one thread.

Run as a process of its own by tests.bench.prepare. A server of the standard library reads headers as those of an
e-mail and costs more than the node agent that is measured beside it; a real API server has its own processors.
"""

import json
import re
import selectors
import socket
import sys
from collections.abc import Mapping
from typing import Any

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class CannedAnswers:
    """Answers each GET by its path, and each other request with an empty object; connections are kept."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        """Take the objects by path, and bind a port."""
        self._answers = {path.encode(): _response(b"200 OK", answer) for path, answer in answers.items()}
        self._missing = _response(b"404 Not Found", {"message": "not found"})
        self._changed = _response(b"200 OK", {"metadata": {}, "status": {}})
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._received: dict[socket.socket, bytes] = {}
        """What came of requests that are not whole yet."""

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve_until_eof(self) -> None:
        """Answer until the standard input ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(sys.stdin, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is sys.stdin:
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._read(selector, key.fileobj)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received[connection] = b""
        selector.register(connection, selectors.EVENT_READ)

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        part = connection.recv(1 << 16)
        if not part:
            selector.unregister(connection)
            del self._received[connection]
            connection.close()
            return
        received = self._received[connection] + part
        while (whole := _length_of_request(received)) is not None:
            method, path, _ = received.split(b" ", 2)
            connection.sendall(self._answers.get(path, self._missing) if method == b"GET" else self._changed)
            received = received[whole:]
        self._received[connection] = received


def _length_of_request(received: bytes) -> int | None:
    """Return the length of the first request, None if it is not all there."""
    head = received.find(_END)
    if head < 0:
        return None
    length = _LENGTH.search(received, 0, head)
    whole = head + len(_END) + (int(length.group(1)) if length else 0)
    return whole if len(received) >= whole else None


def _response(status: bytes, answer: Any) -> bytes:
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d" % (status, len(body))
    return head + _END + body
