"""Where the files come from that a process sees mounted, as the kernel says it. Called by owners.

Source: proc_pid_mountinfo(5). A process with mount rights chooses where it mounts what; the device and the path on it
are the kernel's word, and nobody can make up those of another's file.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")
_DELETED = "//deleted"
"""The kernel's word behind the path of a file that was replaced since it was mounted; no file can be called so."""


@dataclass(frozen=True)
class Origin:
    """A file or folder, whatever it is mounted on."""

    device: str
    """Of the file system, major:minor."""
    path: str
    """From the root of that file system."""


def origins(mountinfo: str) -> Iterator[Origin]:
    """Yield what is mounted in a mount namespace, also what lies under other mounts."""
    return (origin for origin, _ in _mounts(mountinfo))


def origin_of(path: Path, mountinfo: str) -> Origin | None:
    """Return where a file or folder comes from; None if no mount of the namespace leads there."""
    target = os.path.realpath(path)
    found: Origin | None = None
    longest = -1
    for origin, mounted_at in _mounts(mountinfo):
        below = mounted_at.rstrip("/")
        # Of several mounts at one place the last one counts.
        if len(below) >= longest and (target == mounted_at or target.startswith(f"{below}/")):
            longest = len(below)
            found = Origin(origin.device, origin.path.rstrip("/") + target[len(below) :])
    return found


def _mounts(mountinfo: str) -> Iterator[tuple[Origin, str]]:
    # By line feeds alone: other signs that end lines for Python may stand in paths.
    for line in mountinfo.split("\n"):
        fields = line.split(" ", 5)
        if len(fields) > 5:
            _, _, device, root, mounted_at, _ = fields
            yield Origin(device, _plain(root).removesuffix(_DELETED)), _plain(mounted_at)


def _plain(path: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), path)
