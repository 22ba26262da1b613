"""Time that a test lets pass: hours of the program's threads in seconds, in the order in which they would come.

Used by the integration tests for what takes long: outages, Leases, back-off. While a `VirtualTime` is entered, clocks
tell its time and threads that wait in Python (conditions, events, queues, sleeps) wait by it. It moves on only while
all of them wait, from one moment that somebody waits for to the next: a slow machine changes nothing. The test's own
thread, and the pools that serve gRPC, wait in real time.
"""

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from types import FrameType, FunctionType
from typing import Any

import pytest

_PACKAGES = ("api", "controller", "kubeletplugin")
_REAL_THREADS = ("calls", "registration", "claims_", "disk")
_GRPC_THREADS = ("(_serve)", "(_channel_spin)")
"""Of its server and of its clients: they wait in C."""
_JOINING = ("join", "_wait_for_tstate_lock")
_PATIENCE_S = 30.0
"""For threads to come to rest."""
_REST_S = 0.0005
_LEAST_S = 0.001
"""Of a wait: the rest that a rounding leaves would be waited for again and again."""

_real_monotonic, _real_sleep, _real_wait = time.monotonic, time.sleep, threading.Condition.wait
_real_clock, _real_datetime, _real_start = time.clock_gettime, datetime, threading.Thread.start


@dataclass(eq=False)
class _Sleeper:
    """A thread that waits. It stands in the condition that it waits for, which releases who is notified."""

    lock: threading.Lock
    """Wakes it when it is released."""
    until_s: float
    wakes: Callable[["_Sleeper"], None]
    """Told before it is woken: from then on it is at work, though a busy machine may not let it run yet."""
    expired: bool = False

    def release(self) -> None:
        """Called by whoever notifies it."""
        self.wakes(self)
        self.lock.release()


class VirtualTime:
    """A time of its own for threads that begin while it is entered."""

    def __init__(self) -> None:
        self._began_s = self._now_s = _real_monotonic()
        self._began = _real_datetime.now(UTC)
        self._guard = threading.Lock()
        self._sleepers: dict[int, _Sleeper] = {}
        """By the thread's number."""
        self._threads: dict[int, threading.Thread] = {}
        """Those that have begun, and those that have waited once."""
        self._beginning = 0
        """How many are being started."""
        self._others: frozenset[threading.Thread] = frozenset()
        """Those that were there before."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Replace the clocks and waits of this process. At the end all that wait are let go."""
        virtual = self
        self._others = frozenset(threading.enumerate())

        class VirtualDatetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return (virtual._began + timedelta(seconds=virtual.passed_s)).astimezone(tz)

        def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
            at_once = timeout is not None and timeout <= 0
            real = at_once or not virtual._is_ours()
            return _real_wait(condition, timeout) if real else virtual._wait(condition, timeout)

        def start(thread: threading.Thread) -> None:
            with virtual._guard:
                virtual._beginning += 1
            try:
                _real_start(thread)
            finally:
                with virtual._guard:
                    virtual._beginning -= 1
                    if thread.ident is not None and virtual._is_ours(thread):
                        virtual._threads[thread.ident] = thread

        def clock_gettime(number: int) -> float:
            return _real_clock(number) if virtual._is_cpu(number) else virtual._now_s - virtual._began_s + 1e6

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(threading.Condition, "wait", wait)
            patched.setattr(threading.Thread, "start", start)
            patched.setattr(threading, "_time", self._time_of_waits)
            patched.setattr(time, "monotonic", self._monotonic)
            patched.setattr(time, "monotonic_ns", lambda: int(self._now_s * 1e9))
            patched.setattr(time, "clock_gettime", clock_gettime)
            patched.setattr(time, "sleep", self._sleep)
            for module in [found for name, found in sys.modules.items() if name.partition(".")[0] in _PACKAGES]:
                if getattr(module, "datetime", None) is datetime:
                    patched.setattr(module, "datetime", VirtualDatetime)
            for function in gc.get_objects():  # clocks that are defaults of arguments
                if isinstance(function, FunctionType) and str(function.__module__).partition(".")[0] in _PACKAGES:
                    self._replace_defaults(patched, function)
            try:
                yield
            finally:
                self._wake(float("inf"))

    @property
    def passed_s(self) -> float:
        """How much of it has passed."""
        return self._now_s - self._began_s

    def now(self) -> datetime:
        """What the clock on the wall says."""
        return self._began + timedelta(seconds=self.passed_s)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end_s = self._now_s + seconds
        while True:
            self._settle()
            with self._guard:
                due_s = min((sleeper.until_s for sleeper in self._sleepers.values()), default=float("inf"))
                self._now_s = max(self._now_s, min(due_s, end_s))
                if due_s > end_s:
                    return
            self._wake(self._now_s)

    def _wake(self, due_s: float) -> None:
        """Wake those who wait until then at most."""
        with self._guard:
            for number, sleeper in list(self._sleepers.items()):
                if sleeper.until_s <= due_s:
                    sleeper.expired = True
                    del self._sleepers[number]
                    sleeper.lock.release()

    def _settle(self) -> None:
        """Wait until all threads wait."""
        end_s, rests = _real_monotonic() + _PATIENCE_S, 0
        while rests < 2:  # one that is about to end looks as if the one that waits for it had to wait longer
            with self._guard:
                self._threads = {number: thread for number, thread in self._threads.items() if thread.is_alive()}
                frames = sys._current_frames()
                waiting = self._sleepers.keys() | {number for number in self._threads if _joins(frames.get(number))}
                busy = [thread.name for number, thread in self._threads.items() if number not in waiting]
                beginning = self._beginning
            rests = 0 if busy or beginning else rests + 1
            assert _real_monotonic() < end_s, f"threads do not come to rest: {busy}"
            _real_sleep(_REST_S)

    def _wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        """Do what Condition.wait does, by this time."""
        number, inner = threading.get_ident(), vars(condition)
        lock = threading.Lock()
        lock.acquire()
        until_s = float("inf") if timeout_s is None else self._now_s + max(timeout_s, _LEAST_S)
        sleeper = _Sleeper(lock, until_s, self._notified)
        inner["_waiters"].append(sleeper)
        with self._guard:
            self._threads[number] = threading.current_thread()
            self._sleepers[number] = sleeper
        state = condition._release_save()  # type: ignore[attr-defined]
        try:
            lock.acquire()
        finally:
            condition._acquire_restore(state)  # type: ignore[attr-defined]
            if sleeper.expired:
                with contextlib.suppress(ValueError):
                    inner["_waiters"].remove(sleeper)
        return not sleeper.expired

    def _notified(self, sleeper: _Sleeper) -> None:
        """Take a thread for busy from the moment that somebody wakes it."""
        with self._guard:
            for number, found in self._sleepers.items():
                if found is sleeper:
                    del self._sleepers[number]
                    return

    def _sleep(self, seconds: float) -> None:
        if not self._is_ours():
            _real_sleep(seconds)
            return
        condition = threading.Condition()
        with condition:
            self._wait(condition, seconds)

    def _monotonic(self) -> float:
        return self._now_s

    def _time_of_waits(self) -> float:
        return self._now_s if self._is_ours() else _real_monotonic()

    def _replace_defaults(self, patched: pytest.MonkeyPatch, function: FunctionType) -> None:
        clocks = {_real_monotonic: self._monotonic}
        defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
        if any(one is _real_monotonic for one in (*defaults, *named.values())):
            patched.setattr(function, "__defaults__", tuple(self._for(one, clocks) for one in defaults))
            if named:
                patched.setattr(function, "__kwdefaults__", {key: self._for(one, clocks) for key, one in named.items()})

    @staticmethod
    def _for(one: Any, clocks: dict[Any, Any]) -> Any:
        return clocks[_real_monotonic] if one is _real_monotonic else one

    def _is_ours(self, thread: threading.Thread | None = None) -> bool:
        thread = thread or threading.current_thread()
        real = thread.name.startswith(_REAL_THREADS) or thread.name.endswith(_GRPC_THREADS)
        return not real and thread not in self._others

    @staticmethod
    def _is_cpu(number: int) -> bool:
        return number in {time.CLOCK_PROCESS_CPUTIME_ID, time.CLOCK_THREAD_CPUTIME_ID}


def _joins(frame: FrameType | None) -> bool:
    """Return whether a thread waits for the end of another one, which it does in C."""
    if frame is None or frame.f_code.co_filename != threading.__file__ or frame.f_code.co_name not in _JOINING:
        return False
    joined = frame.f_locals.get("self")
    return isinstance(joined, threading.Thread) and joined.is_alive()
