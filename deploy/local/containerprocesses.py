"""One container of a pod as a process on this machine. Called by processpods.py, and by whoever wants to look inside.

The folder of a pod (pod_dir) has a root for each container (cdiroots.py), its output in `logs/NAME.log`, and its
environment in `NAME.json`: a further process with that environment is what `kubectl exec` would start.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import cdiroots

NOT_STARTED_STATUS = 128
"""What a runtime reports of a container whose program cannot be started."""


def pod_dir(state: Path, namespace: str, name: str) -> Path:
    """Return the folder of a pod, under the state folder of its node."""
    return state / "pods" / f"{namespace}_{name}"


def log_path(pod: Path, container: str) -> Path:
    """Return the file with a container's standard output and error."""
    return pod / "logs" / f"{container}.log"


def read_environment(pod: Path, container: str) -> dict[str, str]:
    """Return the environment of a container that was started."""
    found: dict[str, str] = json.loads((pod / f"{container}.json").read_text())
    return found


@dataclass(frozen=True)
class ContainerSettings:
    """What a container's process depends on."""

    pod: Path
    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    edits: Sequence[Mapping[str, Any]]


class ContainerProcess:
    """A started container. To be made, waited for and ended in one thread: the process ends with that thread."""

    def __init__(self, settings: ContainerSettings) -> None:
        """Start it; one that cannot be started has ended with NOT_STARTED_STATUS and its reason in the log."""
        self.name = settings.name
        self.status: int | None = None
        root = settings.pod / "roots" / settings.name
        cdiroots.build_root(root, settings.edits)
        environment = cdiroots.environment(root, settings.edits, settings.environment)
        (settings.pod / f"{settings.name}.json").write_text(json.dumps(environment))
        log = log_path(settings.pod, settings.name)
        log.parent.mkdir(exist_ok=True)
        program = shutil.which(settings.argv[0], path=environment["PATH"]) if settings.argv else None
        if program is None:
            log.write_text(f"found {' '.join(settings.argv)!r}, expected a command whose program is on this machine\n")
            self.status = NOT_STARTED_STATUS
            return
        # The kernel ends it when the node ends, however that happens.
        command = ["setpriv", "--pdeathsig", "KILL", "--", program, *settings.argv[1:]]
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._handle = os.pidfd_open(self._child.pid)

    def fileno(self) -> int:
        """Return a descriptor that select() finds readable when the process has ended."""
        return self._handle

    def ask_to_end(self) -> None:
        """Send SIGTERM, as a container's first process gets it."""
        if self.status is None:
            signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def finish(self) -> int:
        """End the process if it runs, and all that it left in its session; return its exit status."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            # Not reaped yet, so that the number of its group is still its own when the group is killed.
            os.waitid(os.P_PIDFD, self._handle, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
            status = self._child.wait()
            os.close(self._handle)
            self.status = 128 - status if status < 0 else status
        return self.status
