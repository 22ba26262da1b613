"""What the parsers of the commands have in common: how a command, a group of them and a setting look.

Used by the command line and by the modules of its groups (`sharecommands`, `devicecommands`, `faultcommands`).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, get_origin

from pydantic.fields import FieldInfo

from api import names
from api.quantities import format_bytes
from dra_driver.settings import ENV_PREFIX, FILE_ONLY, CommonOptions

Command: TypeAlias = Callable[[argparse.Namespace], int]
"""Does the work; returns the exit status."""
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_METAVARS = {
    "_dir": "DIR",
    "_root": "DIR",
    "_on_host": "DIR",
    "_s": "SECONDS",
    "config": "FILE",
    "listen": "ADDRESS:PORT",
}
"""By the end of a setting's name."""


def add_command(commands: Commands, name: str, function: Command, text: str) -> argparse.ArgumentParser:
    """Add a command; `text` says what it does."""
    parser = commands.add_parser(name, help=text, description=_sentence(text))
    parser.set_defaults(command_function=function)
    return parser


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has actions; return where to add them."""
    parser = commands.add_parser(name, help=text, description=_sentence(text))
    return parser.add_subparsers(title="actions", required=True, metavar="ACTION")


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where the node agent keeps its state."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(names.STATE_DIR),
        metavar="DIR",
        help="the node agent's state folder; default: %(default)s",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says which cluster."""
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="default: the pod's service account, else $KUBECONFIG or ~/.kube/config"
    )


def add_settings(parser: argparse.ArgumentParser, kind: type[CommonOptions]) -> None:
    """Add a flag for each setting that can be said in one; what is not given stays None."""
    parser.epilog = (
        "Each option but --config can be set in other ways too: --log-level as log_level in the file of --config, "
        f"or as {ENV_PREFIX}LOG_LEVEL in the environment."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with settings; environment and flags override it"
    )
    for name, field in kind.model_fields.items():
        if name not in FILE_ONLY:
            choices = _choices(field)
            text = "; ".join(part for part in (field.description, _default(name, field)) if part)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                choices=choices,
                metavar=None if choices else _metavar(name, field),
                help=text.replace("%", "%%"),
            )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _choices(field: FieldInfo) -> tuple[str, ...] | None:
    if field.annotation is bool:
        return ("true", "false")
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else None


def _metavar(name: str, field: FieldInfo) -> str:
    found = next((metavar for end, metavar in _METAVARS.items() if name.endswith(end)), None)
    if get_origin(field.annotation) is tuple:
        return "A,B,..."
    return found or ("N" if field.annotation is int else name.rpartition("_")[2].upper())


def _default(name: str, field: FieldInfo) -> str:
    """Return what a setting is that nobody gives; empty where its description says it, or nothing is to be said."""
    value: Any = field.default
    if field.is_required() or value is None or value in ((), "", 0):
        return ""
    if name.endswith("_memory"):
        return f"default: {format_bytes(value)}"
    if isinstance(value, bool):
        return f"default: {str(value).lower()}"
    return f"default: {','.join(value) if isinstance(value, tuple) else value}"
