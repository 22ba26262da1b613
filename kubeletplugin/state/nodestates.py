"""What the agent keeps on its node for prepared claims: the ledger, the share directories and the CDI specs, together.

Called by preparing, unpreparing and restoring, one claim at a time. Order is what makes it safe against a crash at any
moment: the record is written first and removed last, the CDI spec is written last and removed first.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from api import names
from api.errors import StateError
from api.names import ClaimUID, DeviceName
from api.slots import gpu_of
from kubeletplugin.files import read_if_there, share_out, write_durably
from kubeletplugin.state import cdi
from kubeletplugin.state.claimlocks import ClaimLocks
from kubeletplugin.state.ledgers import Ledger
from kubeletplugin.state.libraries import InstalledLibrary
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from kubeletplugin.state.sharefolders import ShareFolders
from libvgpu.files import locked
from libvgpu.shares import Limits

CHECKPOINT_SUBDIR = "checkpoint"
_DRIVER_FILE = "driver"
"""Says whose state folder it is."""
_CLAIMS_A_THREAD = 8
"""That are removed: on a disk that others keep busy each file may have to wait for it, one after the other."""


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
    def contexts_file(self) -> Path:
        """What was learned of the sizes of contexts."""
        return self.state_dir / "contexts.json"

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
            found = (read_if_there(path) or b"").strip(b"\0 \n")  # an accident of the disk leaves zeros
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

    def __init__(
        self,
        paths: NodePaths,
        vendor: str,
        pool: str,
        library: InstalledLibrary,
        context_bytes: Callable[[str], int] = lambda _uuid: 0,
    ) -> None:
        self.paths = paths
        self.specs = cdi.SpecFolder(paths.cdi_dir, vendor)
        self.shares = ShareFolders(paths.shares_dir, pool, context_bytes)
        self.ledger = Ledger(paths.checkpoint_dir, self.shares.rebuild)
        self.locks = ClaimLocks(paths.state_dir / "claims.lock")
        self._vendor = vendor
        self.library = library

    def put(self, claim: PreparedClaim, former: PreparedClaim | None = None) -> bool:
        """Bring shares and CDI spec of a claim to what its record says; what is right already is left alone.

        Args:
            claim: as recorded.
            former: as recorded before, if it was; shares that it has no more are removed.

        Returns:
            Whether anything had to be written.
        """
        changed = False
        for device in claim.devices:
            if device.limits is not None:
                changed = self._put_share(device, device.limits) or changed
        self.shares.put_copy(claim)
        shares = [limits.share for limits in claim.shares()]
        if shares:
            library = None if claim.needs_no_library else self.library
            spec = cdi.claim_spec(self._vendor, shares, self.paths.shares_dir, library)
            changed = self.specs.write_claim(claim.uid, spec) or changed
        else:
            changed = self.specs.remove_claim(claim.uid) or changed
        for limits in former.shares() if former is not None else ():
            if limits.share not in shares:
                self.shares.remove(limits.share)
        return changed

    def _put_share(self, device: PreparedDevice, limits: Limits) -> bool:
        if device.unknown_policy is not None and self.shares.has(limits.share):
            return False  # what a newer release wrote there says more than we could
        return self.shares.put(limits, device.holds())

    def remove(self, uid: ClaimUID) -> bool:
        """Remove all there is of a claim, recorded or not; return whether there was anything."""
        outcome = self.remove_all([uid])[uid]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def remove_all(self, uids: Collection[ClaimUID]) -> dict[ClaimUID, bool | Exception]:
        """Remove all there is of some claims, recorded or not, with one look at the shares and one wait for the disk.

        Returns:
            Whether there was anything, by claim; or why something is left of it: at least its record, for the next try.
        """
        found: dict[ClaimUID, bool] = {}
        outcomes: dict[ClaimUID, bool | Exception] = {}
        shares = self.shares.of_claims(uids)

        def remove_files(some: Sequence[ClaimUID]) -> None:
            for uid in some:
                try:
                    found[uid] = self.specs.remove_claim(uid)
                    for share in shares[uid]:
                        found[uid] = self.shares.remove(share) or found[uid]
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this claim's alone
                    outcomes[uid] = error

        share_out(list(uids), remove_files, _CLAIMS_A_THREAD)
        for uid, outcome in self.ledger.remove_all(uid for uid in uids if uid not in outcomes).items():
            outcomes[uid] = outcome if isinstance(outcome, OSError) else outcome or found[uid]
        return outcomes

    def held_devices(self) -> list[DeviceName]:
        """Return the devices of all prepared claims, as they were allocated: GPUs, and slots of them."""
        return [device.device for claim in self.ledger.prepared().values() for device in claim.devices]

    def cdi_ids(self, device: PreparedDevice) -> list[str]:
        """Return what the kubelet passes on for a prepared device, the device's own id first."""
        ids = [cdi.gpu_id(self._vendor, gpu_of(device.device))]
        if device.limits is not None:
            ids.append(cdi.claim_id(self._vendor, device.limits.share))
        return ids
