"""What the agent keeps on its node for prepared claims: the ledger, the share directories and the CDI specs, together.

Called by preparing and unpreparing, one claim at a time. Order is what makes it safe against a crash at any moment:
the record is written first and removed last, the CDI spec is written last and removed first.
"""

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from api import names
from api.errors import StateError
from api.names import ClaimUID
from kubeletplugin import cdi
from kubeletplugin.claimlocks import ClaimLocks
from kubeletplugin.files import read_if_there, remove_tree, write_durably
from kubeletplugin.ledgers import Ledger
from kubeletplugin.libraries import InstalledLibrary
from kubeletplugin.preparedclaims import PreparedClaim, PreparedDevice
from libvgpu.files import locked
from libvgpu.shares import Limits, change_limits, create_share, read_books, read_limits

_log = logging.getLogger(__name__)

CHECKPOINT_SUBDIR = "checkpoint"
_DRIVER_FILE = "driver"
"""Says whose state folder it is."""
_CLAIM_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_SHARE_NAME = re.compile(rf"({_CLAIM_UID.pattern})-(\d+)")


def is_claim_uid(text: str) -> bool:
    """Return whether a text can be a claim's UID; only then may it become part of a path."""
    return _CLAIM_UID.fullmatch(text) is not None


@dataclass(frozen=True)
class NodePaths:
    """Where the state lies."""

    state_dir: Path
    cdi_dir: Path

    @property
    def shares_dir(self) -> Path:
        """A folder per share."""
        return self.state_dir / names.SHARES_SUBDIR

    @property
    def checkpoint_dir(self) -> Path:
        """A record per claim."""
        return self.state_dir / CHECKPOINT_SUBDIR

    @property
    def library_dir(self) -> Path:
        """Builds of the interception library."""
        return self.state_dir / names.LIBRARY_SUBDIR


def take_state_dir(paths: NodePaths, driver_name: str) -> None:
    """Make the state folder, or see that it is that of this driver: two drivers would undo each other's claims.

    Raises:
        StateError: another driver has it, or it cannot be used.
    """
    path = paths.state_dir / _DRIVER_FILE
    try:
        paths.state_dir.mkdir(parents=True, exist_ok=True)
        with locked(paths.state_dir):
            found = read_if_there(path)
            if not found:
                write_durably(path, driver_name.encode())
                return
    except OSError as error:
        raise StateError(f"state folder {paths.state_dir}: cannot be used: {error}") from error
    if found != driver_name.encode():
        raise StateError(
            f"state folder {paths.state_dir}: found that of driver {found.decode(errors='replace')}, expected that of "
            f"{driver_name}: give each driver a --state-dir of its own"
        )


class NodeState:
    """The state of one node. Who changes something of a claim holds its lock."""

    def __init__(self, paths: NodePaths, vendor: str, pool: str, library: InstalledLibrary) -> None:
        self.paths = paths
        self.specs = cdi.SpecFolder(paths.cdi_dir, vendor)
        self.ledger = Ledger(paths.checkpoint_dir, self._recover)
        self.locks = ClaimLocks(paths.state_dir / "claims.lock")
        self._vendor = vendor
        self._pool = pool
        self._library = library

    def load(self) -> None:
        """Read the state at start, and bring together what belongs together.

        A share without a record lost it (records go last): it is counted again. A spec without record and share is of
        no use to anybody and is removed.

        Raises:
            StateError: the state cannot be read or written.
        """
        try:
            self._load()
        except OSError as error:
            raise StateError(f"state folder {self.paths.state_dir}: cannot be used: {error}") from error

    def _load(self) -> None:
        # Books are writable by everybody, because any user of a container may be: other users of the node are kept out
        # here. Containers get the files by bind mounts, which the runtime makes as root.
        self.paths.shares_dir.mkdir(parents=True, exist_ok=True)
        self.paths.shares_dir.chmod(0o700)
        self.specs.prepare()
        # Before the records: what another instance prepares meanwhile has a record first, and so is not taken for lost.
        with_share = {uid for uid, _ in self._share_names()}
        with_spec = set(self.specs.claims())
        self.ledger.load()
        for uid in (with_share | with_spec) - self.ledger.prepared().keys():
            with self.locks.hold(uid):
                self._bring_together(uid)

    def _bring_together(self, uid: ClaimUID) -> None:
        """See to it that what lies on the node without a record gets one, or goes."""
        if self.ledger.get(uid) is not None:
            return  # another instance has prepared it meanwhile
        recovered = self._recover(uid)
        if recovered is not None:
            self.ledger.add(recovered)
            _log.warning("share without a record found and counted again", extra={"claim_uid": uid})
        elif self.specs.remove_claim(uid):
            _log.warning("CDI spec of an unknown claim removed", extra={"claim_uid": uid})

    def put(self, claim: PreparedClaim, former: PreparedClaim | None = None) -> None:
        """Bring shares and CDI spec of a claim to what its record says; what is right already is left alone.

        Args:
            claim: as recorded.
            former: as recorded before, if it was; shares that it has no more are removed.
        """
        for limits in claim.shares():
            self._put_share(limits)
        shares = [limits.share for limits in claim.shares()]
        if shares:
            self.specs.write_claim(
                claim.uid, cdi.claim_spec(self._vendor, shares, self.paths.shares_dir, self._library)
            )
        else:
            self.specs.remove_claim(claim.uid)
        for limits in former.shares() if former is not None else ():
            if limits.share not in shares:
                remove_tree(self.paths.shares_dir / limits.share)

    def remove(self, uid: ClaimUID) -> bool:
        """Remove all there is of a claim, recorded or not; return whether there was anything."""
        found = self.specs.remove_claim(uid)
        for share in self._share_names_of(uid):
            found = remove_tree(self.paths.shares_dir / share) or found
        return self.ledger.remove(uid) or found

    def cdi_ids(self, device: PreparedDevice) -> list[str]:
        """Return what the kubelet passes on for a prepared device, the device's own id first."""
        ids = [cdi.gpu_id(self._vendor, device.device)]
        if device.limits is not None:
            ids.append(cdi.claim_id(self._vendor, device.limits.share))
        return ids

    def _put_share(self, limits: Limits) -> None:
        folder = self.paths.shares_dir / limits.share
        # What is steered while the share lives is not part of the claim, and not undone by preparing again.
        try:
            limits = change_limits(folder, lambda present: _following(limits, present))
        except StateError:
            sound = False
        else:
            sound = _has_books(folder)
        if not sound:
            # Not durable: the record is, and each prepare compares and mends what a crash of the machine damaged.
            create_share(folder, limits, durable=False)

    def _recover(self, uid: ClaimUID) -> PreparedClaim | None:
        """Rebuild a record from the limits of the claim's shares: enough to count and to undo it."""
        devices: list[PreparedDevice] = []
        for share in self._share_names_of(uid):
            try:
                limits = read_limits(self.paths.shares_dir / share)
            except StateError as error:
                _log.error("share of a lost record cannot be read", extra={"claim_uid": uid, "error": str(error)})
                continue
            index = int(share.rpartition("-")[2])
            device = names.device_name(limits.device_uuid)
            devices.append(PreparedDevice(index, "", self._pool, device, limits=limits))
        devices.sort(key=lambda device: device.index)
        return PreparedClaim(uid, "", "", tuple(devices)) if devices else None

    def _share_names(self) -> list[tuple[ClaimUID, str]]:
        try:
            found = [_SHARE_NAME.fullmatch(path.name) for path in self.paths.shares_dir.iterdir()]
        except FileNotFoundError:
            return []
        return [(ClaimUID(match.group(1)), match.group(0)) for match in found if match]

    def _share_names_of(self, uid: ClaimUID) -> list[str]:
        # Called for every claim that is undone: cheap with hundreds of shares.
        with os.scandir(self.paths.shares_dir) as entries:
            found = [entry.name for entry in entries if entry.name.rpartition("-")[0] == uid]
        return [name for name in found if _SHARE_NAME.fullmatch(name)]


def _following(claim: Limits, present: Limits) -> Limits:
    """Return the limits of a share with what its claim says."""
    return replace(
        present,
        share=claim.share,
        device_uuid=claim.device_uuid,
        memory_bytes=claim.memory_bytes,
        cores_percent=claim.cores_percent,
        ceiling_percent=claim.ceiling_percent,
        policy=claim.policy,
    )


def _has_books(folder: Path) -> bool:
    try:
        read_books(folder)
    except StateError:
        return False
    return True
