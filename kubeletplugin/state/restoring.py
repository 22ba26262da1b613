"""What the agent does with its node's state before it serves: brings together what belongs together, and mends it.

Called by the agent at start, whatever ended the last one: a crash at any moment, a reboot (everything under /run is
gone, CDI specs as well), somebody who deleted files. Containers that run go on; the log says what was done.
"""

import logging
from pathlib import Path

from api.errors import StateError, VGPUError
from api.names import ClaimUID
from kubeletplugin.files import read_if_there, write_durably
from kubeletplugin.hardware.faultfiles import BOOT_ID_FILE
from kubeletplugin.state.nodestates import NodeState

_log = logging.getLogger(__name__)
_BOOT_FILE = "boot"
"""Boot id of the last start."""


def restore(state: NodeState, boot_id_file: Path = BOOT_ID_FILE) -> None:
    """Read the state of a node, and bring it to what its records say.

    A share without a record lost it (records go last): it is counted again. A spec without record and share is of no
    use to anybody and is removed. What is missing or damaged of a recorded claim is written again: a container that
    ends may be started again without a word to us, and needs its CDI spec.

    Raises:
        StateError: the state cannot be read or written.
    """
    try:
        restored = _restore(state)
        rebooted = _note_boot(state.paths.state_dir / _BOOT_FILE, boot_id_file)
    except OSError as error:
        raise StateError(f"state folder {state.paths.state_dir}: cannot be used: {error}") from error
    claims = len(state.ledger.prepared())
    _log.info("state read", extra={"claims": claims, "restored": restored, "rebooted": rebooted})


def _restore(state: NodeState) -> int:
    state.shares.prepare()
    state.specs.prepare()
    # Before the records: what another instance prepares meanwhile has a record first, and so is not taken for lost.
    found = state.shares.claims() | set(state.specs.claims())
    state.ledger.load()
    for uid in found - state.ledger.prepared().keys():
        with state.locks.hold(uid):
            _bring_together(state, uid)
    return sum(_mend(state, uid) for uid in state.ledger.prepared())


def _bring_together(state: NodeState, uid: ClaimUID) -> None:
    """See to it that what lies on the node without a record gets one, or goes."""
    if state.ledger.get(uid) is not None:
        return  # another instance has prepared it meanwhile
    rebuilt = state.shares.rebuild(uid)
    if rebuilt is not None:
        state.ledger.add(rebuilt)
        _log.warning("share without a record found and counted again", extra={"claim_uid": uid})
    elif state.specs.is_of_shares_elsewhere(uid, state.paths.shares_dir):
        # The state folder was moved under pods that run: their containers need it to start again, until all is undone.
        _log.warning("CDI spec of a claim of another state folder left as it is", extra={"claim_uid": uid})
    elif state.specs.remove_claim(uid):
        _log.warning("CDI spec of an unknown claim removed", extra={"claim_uid": uid})


def _mend(state: NodeState, uid: ClaimUID) -> bool:
    """Bring a claim to what its record says; return whether anything had to be written. One that fails costs itself.

    A rebuilt record may lack shares: what there is of such a claim stays as it is until the kubelet prepares it again.
    """
    try:
        with state.locks.hold(uid):
            claim = state.ledger.get(uid)
            changed = claim is not None and claim.is_complete and state.put(claim)
    except (OSError, VGPUError) as error:
        _log.error("claim not restored", extra={"claim_uid": uid, "error": str(error)})
        return False
    if changed:
        _log.info("claim restored", extra={"claim_uid": uid})
    return changed


def _note_boot(path: Path, boot_id_file: Path) -> bool:
    """Return whether the machine was started anew since the last start of an agent."""
    current, former = read_if_there(boot_id_file), read_if_there(path)
    if current is None or current == former:
        return False
    try:
        write_durably(path, current)
    except OSError as error:
        # Told again at the next start. Nothing else depends on it, and claims can be undone on a full disk.
        _log.warning("start of the machine not noted", extra={"file": str(path), "error": str(error)})
    return former is not None
