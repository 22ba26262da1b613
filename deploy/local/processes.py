"""Starts the cluster's components as plain processes, and stops exactly those again.

A process is known by its id and its start time, written to a file when it is started: an id alone may belong to
somebody else by the time that `down` reads it. Called by controlplane.py, nodes.py and teardown.py.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.local.errors import StartError

STOP_TIMEOUT_S = 10.0
_PROC = Path("/proc")
# Children of this very process: kept so that they can be reaped, and are not reported as forgotten.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ProcessId:
    """One process of this boot of the machine, and no other."""

    pid: int
    start_time: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Return the identity of a running process; ProcessLookupError if there is none."""
        start_time = _start_time(pid)
        if start_time is None:
            raise ProcessLookupError(pid)
        return cls(pid, start_time, _boot_id())

    def alive(self) -> bool:
        """Tell whether that very process still runs (a zombie does not)."""
        return self.boot == _boot_id() and _start_time(self.pid) == self.start_time


@dataclass(frozen=True)
class Command:
    """What to start, and where its output and its record go."""

    name: str
    argv: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    dies_with_caller: bool = False
    working_directory: Path | None = None

    @property
    def record(self) -> Path:
        """The file that says which process this is."""
        return record_path(self.directory, self.name)

    @property
    def log(self) -> Path:
        """The file with its standard output and error."""
        return self.directory / "logs" / f"{self.name}.log"


def record_path(directory: Path, name: str) -> Path:
    """Return the file in which the identity of the process `name` of the cluster in `directory` stands."""
    return directory / "processes" / f"{name}.json"


def start(command: Command) -> ProcessId:
    """Start a process in a session of its own and record it; return its identity."""
    command.record.parent.mkdir(parents=True, exist_ok=True)
    command.log.parent.mkdir(parents=True, exist_ok=True)
    argv = list(command.argv)
    if command.dies_with_caller:
        # The kernel ends it when whoever started it ends, however that happens.
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with command.log.open("ab") as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(command.environment),
            cwd=command.working_directory,
            start_new_session=True,
        )
    return adopt(child, command.record)


def adopt(child: subprocess.Popen[bytes], record: Path) -> ProcessId:
    """Record a child of ours; return its identity."""
    _children[child.pid] = child
    return write_record(ProcessId.of(child.pid), record)


def recorded(record: Path) -> ProcessId | None:
    """Return the identity in a record, None if there is no readable one."""
    try:
        return ProcessId(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running(record: Path) -> ProcessId | None:
    """Return the identity in a record if that process runs."""
    identity = recorded(record)
    return identity if identity is not None and identity.alive() else None


def stop(identity: ProcessId, *, first: signal.Signals = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End exactly this process and wait until it is gone: by `first`, then by SIGKILL. No error if it is gone."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        reap()
        return
    try:
        # Only now: with the handle open, the id cannot pass to another process any more.
        if not identity.alive():
            return
        for sent in (first, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, sent)
            if select.select([handle], [], [], timeout_s)[0]:
                return
    finally:
        os.close(handle)
        reap()


def reap() -> None:
    """Collect those children of this process that have ended."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def wait_for_child(parent: ProcessId, record: Path, timeout_s: float = STOP_TIMEOUT_S) -> ProcessId:
    """Record under `record` the process that `parent` forks (as unshare and nsenter do), and return its identity.

    StartError if `parent` ends first.
    """
    deadline = time.monotonic() + timeout_s
    children = _PROC / str(parent.pid) / "task" / str(parent.pid) / "children"
    while parent.alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if found := children.read_text().split():
                return write_record(ProcessId.of(int(found[0])), record)
        time.sleep(0.002)  # the kernel announces a fork to nobody but tracers
    raise StartError(f"process {parent.pid} ended before it had started its program")


def write_record(identity: ProcessId, record: Path) -> ProcessId:
    """Write an identity to a file, and return it."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(asdict(identity)))
    return identity


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/<pid>/stat (proc_pid_stat(5)), None where no live process has this id."""
    try:
        # The name in field 2 may itself contain spaces and parentheses.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
