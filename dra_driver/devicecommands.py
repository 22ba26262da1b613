"""The commands `dra-driver device cordon|uncordon|drain`: their arguments and output. Part of the command line."""

import argparse
import math

from api import names
from dra_driver.parsers import Commands, add_cluster, add_command, add_group

_ACTIONS = (
    ("cordon", "keep new claims away from a GPU; claims that hold it keep it"),
    ("uncordon", "let new claims use a GPU again"),
    ("drain", "cordon a GPU, and evict the pods that hold it"),
)


def add(commands: Commands) -> None:
    """Add the commands to those of the program."""
    actions = add_group(commands, "device", "cordon, uncordon or drain a GPU of the cluster")
    for name, text in _ACTIONS:
        action = add_command(actions, name, _run, text)
        action.set_defaults(action=name)
        action.add_argument("node", help="name of the node")
        action.add_argument("device", help="name or UUID of the GPU, or the start of it")
        add_cluster(action)
        if name == "drain":
            action.add_argument("--driver-name", default=names.DRIVER_NAME, metavar="NAME", help="default: %(default)s")
            action.add_argument(
                "--timeout-s",
                type=_seconds,
                default=300.0,
                metavar="SECONDS",
                help="how long to wait for the end of the pods; default: %(default)g",
            )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds, 0 or above")
    return seconds


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
