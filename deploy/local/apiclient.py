"""The few calls that starting a cluster makes to its own API server: plain HTTPS with a token, and a watch.

Called by controlplane.py and cluster.py. Everything else goes through kubectl or the project's own client.
"""

import http.client
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from deploy.local.errors import StartError


class ApiClient:
    """Talks to one API server as one user."""

    def __init__(self, host: str, port: int, authority: Path, token: str) -> None:
        self._address = (host, port)
        self._authority = authority
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def ready(self) -> bool:
        """Tell whether the server answers that it is ready."""
        try:
            connection, response = self._get("/readyz", timeout_s=2)
        except OSError:
            return False
        with connection:
            return response.status == http.client.OK

    def wait_for(self, path: str, wanted: Callable[[dict[str, Any]], bool], timeout_s: float, what: str) -> None:
        """Watch a list until one of its objects is as wanted; StartError, naming `what`, when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                connection, response = self._get(f"{path}?watch=1&timeoutSeconds={int(left) + 1}", timeout_s=left)
                with connection:
                    for line in response:
                        event = json.loads(line)
                        if event["type"] in {"ADDED", "MODIFIED"} and wanted(event["object"]):
                            return
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.1)  # the server restarts, or the watch was cut: begin a new one
        raise StartError(f"{what} was not seen within {timeout_s:.0f} s")

    def _get(self, path: str, timeout_s: float) -> tuple["_Connection", http.client.HTTPResponse]:
        context = ssl.create_default_context(cafile=str(self._authority))
        connection = _Connection(*self._address, context=context, timeout=timeout_s)
        try:
            connection.request("GET", path, headers=self._headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise


class _Connection(http.client.HTTPSConnection):
    """A connection that a with statement closes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def node_is_ready(name: str) -> Callable[[dict[str, Any]], bool]:
    """Return a test for a Node object of this name whose condition Ready is true."""

    def wanted(node: dict[str, Any]) -> bool:
        conditions = node.get("status", {}).get("conditions", [])
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        return ready and node["metadata"]["name"] == name

    return wanted


def is_named(name: str) -> Callable[[dict[str, Any]], bool]:
    """Return a test for any object of this name."""
    return lambda found: bool(found["metadata"]["name"] == name)
