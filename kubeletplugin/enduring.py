"""Keeps the agent's threads going: what nobody expected ends a round, and never the thread.

Used by the agent for all its threads. Most of what they read was written by others: the driver, the API server, and
tenants, who must not be able to end the supervision of all shares by something that we did not think of.
"""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_TELL_AGAIN_S = 600.0


def endure(body: Callable[[], None], name: str, stopping: threading.Event) -> None:
    """Run a loop until it returns, and begin it anew where it raises, a moment later.

    Args:
        body: loops until the event is set; catches what it expects.
        name: of the thread, for the log.
        stopping: ends the wait between two tries.
    """
    told: dict[str, float] = {}
    while True:
        try:
            body()
        except Exception as error:  # noqa: BLE001 - that is what this is for
            now_s, what = time.monotonic(), repr(error)
            told = {one: told_s for one, told_s in told.items() if now_s < told_s + _TELL_AGAIN_S}
            if what not in told:
                told[what] = now_s
                extra = {"part": name, "error": what}
                _log.error("unexpected error; the thread goes on", extra=extra, exc_info=error)
            if stopping.wait(_AGAIN_S):
                return
        else:
            return
