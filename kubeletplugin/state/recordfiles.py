"""The records of prepared claims as files: `<claim uid>.json`, each whole or not there.

Called by the ledger, which sees to it that one instance at a time changes them (docs/adr/0004-a-record-per-claim.md).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from api.errors import StateError
from api.names import ClaimUID
from kubeletplugin.files import FolderSync, fsync_directory, fsync_files, remove, write_atomically, write_durably
from kubeletplugin.state.preparedclaims import PreparedClaim, decode

_SUFFIX = ".json"
QUARANTINE_SUFFIX = ".damaged"
_MODE = 0o600
_LOST = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}
"""What a disk says that has lost the content of a file: one claim's trouble, and no other's."""

Recovery = Callable[[ClaimUID], PreparedClaim | None]
"""Rebuilds the record of a claim from what else lies on the node; None: nothing of it lies there."""
Signature = tuple[int, int, int]
"""Inode, time of change and length of a file: another one after each change."""


class DamagedRecordError(Exception):
    """A record cannot be read any more; the cause says why."""


class RecordFiles:
    """The files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name = str(folder)
        self._sync = FolderSync(folder)

    def make_folder(self) -> None:
        """Create the folder, for root alone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def scan(self) -> Iterator[tuple[ClaimUID, Signature]]:
        """Yield the claims that have a record."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield ClaimUID(entry.name.removesuffix(_SUFFIX)), _signature(status)

    def read(self, uid: ClaimUID) -> PreparedClaim:
        """Return what the record of a claim says.

        Raises:
            DamagedRecordError: nothing that could be read as one, and never will be.
            OSError: of the moment: no memory, no descriptors.
        """
        path = Path(self._path(uid))
        try:
            return decode(path.read_bytes(), uid, str(path))
        except (StateError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _LOST:
                raise
            raise DamagedRecordError from error

    def place(self, claim: PreparedClaim, *, fresh: bool) -> Signature:
        """Put a record into its place. A fresh one need not be whole after a power cut; one that replaces another must.

        Until it is settled the kubelet has no answer: no container runs by a fresh one.
        """
        path = self._path(claim.uid)
        write = write_atomically if fresh else write_durably
        try:
            write(path, claim.record, _MODE)
        except FileNotFoundError:  # somebody took the folder
            self.make_folder()
            write(path, claim.record, _MODE)
        return _signature(os.stat(path))  # noqa: PTH116 - each claim comes by here

    def settle(self, uids: Sequence[ClaimUID]) -> None:
        """Make records durable that are in their places."""
        fsync_files([self._path(uid) for uid in uids])
        self._sync()

    def remove(self, uid: ClaimUID) -> bool:
        """Remove a record; return whether there was one. Durable after sync_folder()."""
        return remove(self._path(uid))

    def sync_folder(self) -> None:
        """Make it durable which records there are. Of a folder that is gone nothing comes back."""
        try:
            self._sync()
        except FileNotFoundError:
            self.make_folder()

    def put_aside(self, uid: ClaimUID, rebuilt: PreparedClaim | None) -> Path:
        """Keep a damaged record under another name, with what was rebuilt in its place; return where."""
        path = Path(self._path(uid))
        aside = path.with_name(path.name + QUARANTINE_SUFFIX)
        aside.unlink(missing_ok=True)
        aside.hardlink_to(path)
        if rebuilt is None:
            path.unlink()
            fsync_directory(self.folder)
        else:
            write_durably(path, rebuilt.record, _MODE)
        return aside

    def _path(self, uid: ClaimUID) -> str:
        # As text: each claim comes by here several times, and paths as objects cost more than the calls.
        return f"{self._name}/{uid}{_SUFFIX}"


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size
