"""`dra-driver fault list|clear`: faults of this node's GPUs that the agent remembers, and taking one for harmless.

Part of the command line. The node agent need not run: it finds the change in its state folder, and says so in its log.
"""

import argparse
import getpass
import json
import os
from dataclasses import asdict
from pathlib import Path

from api.errors import ConfigError
from dra_driver.parsers import Commands, add_command, add_group, add_state_dir


def add(commands: Commands) -> None:
    """Add the commands to those of the program."""
    actions = add_group(commands, "fault", "show and clear faults of this node's GPUs")
    listing = add_command(
        actions, "list", _list, "list the GPUs with a fault, and the faults that were cleared since the boot"
    )
    listing.add_argument("-o", "--output", choices=("text", "json"), default="text")
    clearing = add_command(actions, "clear", _clear, "clear a harmless fault of a GPU: it is offered again")
    clearing.add_argument("device", metavar="UUID", help="of the GPU, or the start of it")
    clearing.add_argument("--reason", required=True, help="why it is harmless; kept, and logged")
    for action in (listing, clearing):
        add_state_dir(action)


def _list(options: argparse.Namespace) -> int:
    from kubeletplugin.hardware.faultfiles import FAULTS_FILE, FaultFile

    record = FaultFile(_checked(options.state_dir) / FAULTS_FILE).read()
    if options.output == "json":
        print(json.dumps(asdict(record), indent=2))
        return 0
    for uuid, fault in sorted(record.faults.items()):
        print(f"{uuid}: Xid {fault.xid}, {fault.at_s:.0f} s after the boot")
    for one in record.cleared:
        print(f"{one.uuid}: Xid {one.xid} cleared at {one.at} by {one.by}: {one.reason}")
    if not record.faults and not record.cleared:
        print("no faults since the boot")
    return 0


def _clear(options: argparse.Namespace) -> int:
    from kubeletplugin.hardware.faultfiles import FAULTS_FILE, FaultFile, clear_fault

    file = FaultFile(_checked(options.state_dir) / FAULTS_FILE)
    cleared = clear_fault(file, options.device, _user(), options.reason)
    print(f"{cleared.uuid}: Xid {cleared.xid} cleared; the node agent offers the GPU again at its next look")
    return 0


def _checked(state_dir: Path) -> Path:
    if not state_dir.is_dir():
        raise ConfigError(f"--state-dir: found no folder {state_dir}, expected the state folder of a node agent")
    return state_dir


def _user() -> str:
    """Return who runs the command, and not only that it is root."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
