"""Memory of a GPU that a pod holds without a share of it: asked for whose it may be, and told if it is nobody's.

Run by the supervisor after each look at the driver. A container that hides all its mounts counts for the claims of its
pod. If no claim of the node is known to be that pod's, the API server is asked at once; what stays without a claim is
overuse that no share answers for: told by an event on the node, a warning and metrics.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from api import names
from api.quantities import format_bytes
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import DEFAULT_SLACK, Attribution, DriverCount, Slack

_log = logging.getLogger(__name__)
_LOOKS = 3
"""Looks in a row before it is told: in the time between, the API server answers whose claims the pod has."""
_ASK_AGAIN_S = 30.0
_TELL_AGAIN_S = 600.0

Tell = Callable[[str, str], None]
"""Says something about the node: reason and note."""


@dataclass(frozen=True)
class StrayFigures:
    """What pods hold that no share of theirs gives them."""

    over_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """As of the last look, by the UUID of the device and of the pod."""
    count: int = 0
    """How often such overuse began."""


class StrayWatch:
    """Watches the pods that hold what no share of theirs gives them."""

    def __init__(
        self,
        tell: Tell,
        ask: Callable[[], None],
        slack: Slack = DEFAULT_SLACK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what it works with.

        Args:
            tell: tells the people who run the node.
            ask: has the pods of all claims asked for now; returns at once.
            slack: what is no overuse yet; of it the bytes.
            clock: one that nobody sets.
        """
        self._tell = tell
        self._ask = ask
        self._slack = slack
        self._clock = clock
        self._looks: dict[tuple[str, str], int] = {}
        """Looks in a row that found a stray, by the UUID of the device and of the pod."""
        self._told_s: dict[tuple[str, str], float] = {}
        self._asked_s = float("-inf")
        self.figures = StrayFigures()

    def observe(self, found: Attribution, _readings: Sequence[ShareReading]) -> None:
        """Take what was found at one look."""
        large = {key: one for key, one in found.strays.items() if one.memory_bytes > self._slack.memory_bytes}
        now_s = self._clock()
        if large.keys() - self._looks.keys() and now_s >= self._asked_s + _ASK_AGAIN_S:
            self._asked_s = now_s
            self._ask()
        self._looks = {key: self._looks.get(key, 0) + 1 for key in large}
        self._told_s = {key: told_s for key, told_s in self._told_s.items() if now_s < told_s + _TELL_AGAIN_S}
        lasting = {key: one for key, one in large.items() if self._looks[key] >= _LOOKS}
        begun = sum(looks == _LOOKS for looks in self._looks.values())
        over_bytes = {key: one.memory_bytes for key, one in lasting.items()}
        self.figures = StrayFigures(over_bytes, self.figures.count + begun)
        for key, one in lasting.items():
            if key not in self._told_s:
                self._told_s[key] = now_s
                self._say(key, one)

    def _say(self, key: tuple[str, str], one: DriverCount) -> None:
        device, pod = key
        pids = ", ".join(str(pid) for pid in one.pids)
        note = (
            f"pod {pod} holds {format_bytes(one.memory_bytes)} of {device} by the driver's count (processes {pids}), "
            "expected none: no claim of this node that gives a share of it is reserved for the pod"
        )
        _log.warning("overuse of device memory: %s", note, extra={"device": device, "pod_uid": pod})
        self._tell(names.EVENT_OVERUSE, note)
