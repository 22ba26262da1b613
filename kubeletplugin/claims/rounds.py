"""Lets calls that come at the same time be worked on together: who comes while others are at work is in the next round.

Called by preparing and unpreparing. Threads of one interpreter that work side by side take turns at every system call;
what a hundred calls need costs a quarter when one of them does it for all. A call that comes alone is worked on at
once, by itself.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from api.deadlines import left_s, within
from api.errors import TransientError

_K = TypeVar("_K")
_W = TypeVar("_W")
_O = TypeVar("_O")

_PATIENCE_S = 0.1
"""A round that takes longer waits for somebody, such as an API server: the next one begins beside it."""
_MOST_ROUNDS = 8
"""At once."""
_MOST_THINGS = 128
"""In a round, unless one call wants more."""
_LONGEST_S = 3600.0


@dataclass(eq=False)
class _Call(Generic[_K, _W, _O]):
    """What one caller wants done, and what came of it."""

    wanted: Mapping[_K, _W]
    end_s: float
    """When its caller has no use for an answer any more, by the monotonic clock."""
    turn: threading.Event = field(default_factory=threading.Event)
    """Set when it was in a round, or is to lead one."""
    leads: "Sequence[_Call[_K, _W, _O]]" = ()
    """The calls of the round that its caller has to see to."""
    done: Mapping[_K, _O] | None = None
    error: Exception | None = None


class Rounds(Generic[_K, _W, _O]):
    """Merges calls into rounds. Safe to use from several threads, which is what it is for."""

    def __init__(self, act: Callable[[Mapping[_K, _W]], Mapping[_K, _O]]) -> None:
        """Take what is done with all that is wanted in a round, by key; it may leave out some of it."""
        self._act = act
        self._lock = threading.Lock()
        self._waiting: list[_Call[_K, _W, _O]] = []
        self._running = 0

    def do(self, wanted: Mapping[_K, _W]) -> dict[_K, _O]:
        """Have something done, together with what others want now; return what came of it, by key.

        Where two want something else under one key, only the first is served in a round.

        Raises:
            TransientError: the deadline came before a round had a place.
            Exception: what the action raises.
        """
        call: _Call[_K, _W, _O] = _Call(wanted, time.monotonic() + left_s(_LONGEST_S))
        with self._lock:
            self._waiting.append(call)
            self._begin(call, most=1)
        if not call.leads and not call.turn.wait(min(_PATIENCE_S, call.end_s - time.monotonic())):
            with self._lock:
                self._begin(call, most=_MOST_ROUNDS)
        if not call.leads and not call.turn.wait(call.end_s - time.monotonic()):
            self._give_up(call)
        if call.leads:
            self._lead(call.leads)
        if call.error is not None:
            raise call.error
        done = call.done or {}
        return {key: done[key] for key in wanted if key in done}

    def _begin(self, call: _Call[_K, _W, _O], most: int) -> None:
        """Let a call that waits lead a round, if less than so many run; the lock is held."""
        if call in self._waiting and self._running < most:
            self._running += 1
            call.leads = self._take_waiting()

    def _take_waiting(self) -> Sequence[_Call[_K, _W, _O]]:
        """Return the calls of the next round, which wait no longer; the lock is held."""
        things = 0
        for number, call in enumerate(self._waiting):
            things += len(call.wanted)
            if number and things > _MOST_THINGS:
                taken, self._waiting = self._waiting[:number], self._waiting[number:]
                return taken
        taken, self._waiting = self._waiting, []
        return taken

    def _lead(self, calls: Sequence[_Call[_K, _W, _O]]) -> None:
        try:
            self._serve(calls)
        finally:
            with self._lock:
                if self._waiting:
                    leader = self._waiting[0]
                    leader.leads = self._take_waiting()
                    leader.turn.set()
                else:
                    self._running -= 1
            for call in calls:
                call.turn.set()

    def _serve(self, calls: Sequence[_Call[_K, _W, _O]]) -> None:
        wanted: dict[_K, _W] = {}
        for call in calls:
            for key, thing in call.wanted.items():
                wanted.setdefault(key, thing)

        def act() -> Mapping[_K, _O]:
            with within(max(call.end_s for call in calls) - time.monotonic()):
                return self._act(wanted)

        try:
            # Without the leader's own deadline: a call with little time left must not fail those of the others.
            done = Context().run(act)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            for call in calls:
                call.error = error
            return
        for call in calls:
            call.done = {key: done[key] for key, thing in call.wanted.items() if key in done and wanted[key] == thing}

    def _give_up(self, call: _Call[_K, _W, _O]) -> None:
        """Take a call back whose time is up, unless its round has come just now."""
        with self._lock:
            if call.leads or call.turn.is_set():
                return
            if call in self._waiting:
                self._waiting.remove(call)
        raise TransientError("other calls were worked on for all the time that this one had")
