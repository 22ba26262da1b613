"""The folders of the shares on a node: `<claim uid>-<index>` with limits and books.

Called by nodestates. What is in the folders of a claim changes under the claim's lock alone; books belong to tenants.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from api import names
from api.errors import StateError
from api.names import ClaimUID
from kubeletplugin.files import read_if_there, remove_tree, write_atomically, write_first
from kubeletplugin.state.adjusting import adjusted, following, sound_adjustments
from kubeletplugin.state.preparedclaims import Held, PreparedClaim, PreparedDevice, decode
from libvgpu.shares import Limits, change_limits, create_new_share, create_share, is_in_use, read_books, read_limits

_log = logging.getLogger(__name__)

_CLAIM_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_SHARE_NAME = re.compile(rf"({_CLAIM_UID.pattern})-(\d+)")


def is_claim_uid(text: str) -> bool:
    """Return whether a text can be a claim's UID; only then may it become part of a path."""
    return _CLAIM_UID.fullmatch(text) is not None


class ShareFolders:
    """All shares of a node."""

    def __init__(self, folder: Path, pool: str, context_bytes: Callable[[str], int] = lambda _uuid: 0) -> None:
        """Take where they are.

        Args:
            folder: of all shares.
            pool: name of the node's pool, for records that are rebuilt.
            context_bytes: returns what a context takes of the device with a UUID; 0: not known.
        """
        self.folder = folder
        self._pool = pool
        self._context_bytes = context_bytes

    def prepare(self) -> None:
        """Create the folder.

        Books are writable by everybody, because any user of a container may be: other users of the node are kept out
        here. Containers get the files by bind mounts, which the runtime makes as root.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.stat().st_mode & 0o777 != _MODE:
            self.folder.chmod(_MODE)

    def put(self, claim: Limits, held: Held) -> bool:
        """Bring a share to what its claim says; return whether anything had to be mended.

        What was changed while the share lives is not part of the claim, and not undone by preparing again.
        """
        folder = Path(f"{self.folder}/{claim.share}")
        # Not durable: the record is, and each prepare compares and mends what a crash of the machine damaged.
        if create_new_share(folder, self._with_context(adjusted(claim, held, {}))):
            return True
        limits = adjusted(claim, held, sound_adjustments(folder))
        before: list[Limits] = []

        def follow(present: Limits) -> Limits:
            before.append(present)
            return following(limits, present)

        try:
            limits = change_limits(folder, follow)
            read_books(folder)
        except StateError:
            limits = self._with_context(limits)
            create_share(folder, limits, durable=False)
            return True
        return limits != before[0]

    def _with_context(self, limits: Limits) -> Limits:
        context_bytes = self._context_bytes(limits.device_uuid)
        return limits if context_bytes == limits.context_bytes else replace(limits, context_bytes=context_bytes)

    def has(self, share: str) -> bool:
        """Return whether there are limits and books of a share, whatever they say."""
        return all((self.folder / share / file).exists() for file in (names.LIMITS_FILE, names.BOOKS_FILE))

    def remove(self, share: str) -> bool:
        """Remove a share; return whether there was anything."""
        return remove_tree(self.folder / share)

    def claims(self) -> set[ClaimUID]:
        """Return the claims that have shares."""
        found = (_SHARE_NAME.fullmatch(name) for name in os.listdir(self.folder))  # noqa: PTH208 - names alone, fast
        return {ClaimUID(match.group(1)) for match in found if match}

    def of_claim(self, uid: ClaimUID) -> list[str]:
        """Return the shares of a claim."""
        return self.of_claims([uid])[uid]

    def of_claims(self, uids: Iterable[ClaimUID]) -> dict[ClaimUID, list[str]]:
        """Return the shares of some claims. Called for all claims that are undone: cheap with hundreds of shares."""
        found: dict[ClaimUID, list[str]] = {uid: [] for uid in uids}
        try:
            names_there = sorted(os.listdir(self.folder))  # noqa: PTH208 - as above
        except FileNotFoundError:  # somebody took the folder, with all that was in it
            return found
        for name in names_there:
            uid = ClaimUID(name.rpartition("-")[0])
            if uid in found and _SHARE_NAME.fullmatch(name):
                found[uid].append(name)
        return found

    def in_use(self, uid: ClaimUID) -> bool:
        """Return whether a living process has one of a claim's shares."""
        return any(is_in_use(self.folder / share) for share in self.of_claim(uid))

    def put_copy(self, claim: PreparedClaim) -> None:
        """Keep a copy of a claim's record beside the limits of its first share: what `rebuild` starts from."""
        first = next(claim.shares(), None)
        if first is None:
            return
        path = f"{self.folder}/{first.share}/{_COPY_FILE}"
        try:
            write_first(path, claim.record, 0o600)  # whole or not: the record is there
        except FileExistsError:
            if read_if_there(path) != claim.record:
                write_atomically(path, claim.record, 0o600)

    def rebuild(self, uid: ClaimUID) -> PreparedClaim | None:
        """Rebuild the record of a claim from what lies in the folders of its shares.

        A copy of the record is as good as the record. Without it, limits are enough to count and to undo the claim. A
        share that cannot be read counts nothing, but it belongs to a claim again, which can be undone.
        """
        shares = self.of_claim(uid)
        for share in shares:
            copy = self._read_copy(uid, self.folder / share / _COPY_FILE)
            if copy is not None:
                return copy
        devices: list[PreparedDevice] = []
        for share in shares:
            try:
                limits = read_limits(self.folder / share)
            except StateError as error:
                _log.error("share of a lost record cannot be read", extra={"claim_uid": uid, "error": str(error)})
                continue
            index = int(share.rpartition("-")[2])
            device = names.device_name(limits.device_uuid)
            devices.append(PreparedDevice(index, "", self._pool, device, limits=limits))
        devices.sort(key=lambda device: device.index)
        return PreparedClaim(uid, "", "", tuple(devices)) if shares else None

    def _read_copy(self, uid: ClaimUID, path: Path) -> PreparedClaim | None:
        content = read_if_there(path)
        try:
            return None if content is None else decode(content, uid, str(path))
        except StateError as error:
            _log.error("copy of a lost record cannot be read", extra={"claim_uid": uid, "error": str(error)})
            return None


_MODE = 0o700
_COPY_FILE = "claim.json"
