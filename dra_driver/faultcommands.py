"""`dra-driver fault list|clear`: faults of this node's GPUs that the agent remembers, and taking one for harmless.

Part of the command line. The node agent need not run: it finds the change in its state folder, and says so in its log.
"""

import argparse
import getpass
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from api import names
from api.errors import ConfigError

_ACTIONS = (
    ("list", "list the GPUs with a fault, and the faults that were cleared since the boot"),
    ("clear", "take the fault of a GPU for harmless: it is offered again"),
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to those of the program."""
    text = "show and clear faults of this node's GPUs"
    parser = commands.add_parser("fault", help=text, description=text[0].upper() + text[1:] + ".")
    actions: Any = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, text in _ACTIONS:
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.set_defaults(command_function=_clear if name == "clear" else _list)
        action.add_argument(
            "--state-dir", type=Path, default=Path(names.STATE_DIR), metavar="D", help="default: %(default)s"
        )
        if name == "clear":
            action.add_argument("device", metavar="UUID", help="of the GPU, or the start of it")
            action.add_argument("--reason", required=True, help="why it is harmless; kept, and logged")
        else:
            action.add_argument("-o", "--output", choices=("text", "json"), default="text")


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
