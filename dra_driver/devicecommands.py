"""The commands `dra-driver device cordon|uncordon|drain`: their arguments and output. Called by the command line."""

import argparse
from typing import Any

from api import names

_ACTIONS = (
    ("cordon", "keep new claims away from a GPU; who holds it keeps it"),
    ("uncordon", "let claims have a GPU again"),
    ("drain", "cordon a GPU, and evict the pods that hold it"),
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to those of the program."""
    text = "keep new claims away from a GPU of the cluster, or empty it"
    parser = commands.add_parser("device", help=text, description=text[0].upper() + text[1:] + ".")
    actions: Any = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, text in _ACTIONS:
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.set_defaults(command_function=_run, action=name)
        action.add_argument("node")
        action.add_argument("device", help="name or UUID, or the start of it")
        action.add_argument("--kubeconfig", metavar="F")
        if name == "drain":
            action.add_argument("--driver-name", default=names.DRIVER_NAME, metavar="N")
            action.add_argument(
                "--timeout-s", type=float, default=300.0, metavar="S", help="wait for the pods; default: %(default)s"
            )


def _run(options: argparse.Namespace) -> int:
    from api.httpkube import HTTPKubeClient
    from dra_driver import cordoning

    kube = HTTPKubeClient(options.kubeconfig)
    node, device = options.node, options.device
    if options.action == "drain":
        cordoning.drain(kube, node, device, timeout_s=options.timeout_s, report=print, driver=options.driver_name)
    else:
        new = cordoning.cordon(kube, node, device, cordoned=options.action == "cordon")
        print(f"{node}/{device}: {'' if new else 'already '}{options.action}ed")
    return 0
