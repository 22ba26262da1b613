"""The command line of `dra-driver` (as a kubectl plug-in: `kubectl vgpu`).

Parses, loads what the command needs and hands over; decides nothing. Exit status: 0, 2 for wrong input (with a line
that says what is expected), 1 for everything else; `run` ends with the status of its command.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, get_args

import yaml

from api import names, nodeinventory
from api.errors import ConfigError, VGPUError
from api.offerrules import OfferModeName
from api.quantities import parse_bytes
from api.vgpuconfig import Policy
from dra_driver import __version__, devicecommands, faultcommands
from dra_driver.logs import FORMATS

_Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = _parser().parse_args(arguments)
    command: _Command = options.command_function
    try:
        return command(options)
    except ConfigError as error:
        return _fail(error, 2)
    except VGPUError as error:
        return _fail(error, 1)


def _fail(error: VGPUError, status: int) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"dra-driver: {line}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dra-driver", description="Fractional GPUs for Kubernetes, by Dynamic Resource Allocation"
    )
    parser.add_argument("--version", action="version", version=f"dra-driver {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_controller(commands)
    _add_node_agent(commands)
    _add_share(commands)
    _add_explain(commands)
    devicecommands.add(commands)
    faultcommands.add(commands)
    _add(commands, "crds", _crds, "print the CustomResourceDefinitions, for kubectl apply")
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(commands: _Commands, name: str, function: _Command, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command_function=function)
    return parser


def _add_run(commands: _Commands) -> None:
    parser = _add(commands, "run", _run, "run a command inside a share of a GPU of this machine")
    parser.add_argument("--memory", metavar="Q", help='device memory, such as "2Gi"; default: all of it')
    parser.add_argument("--cores", type=int, metavar="N", help="percent of the device's compute time, 1 to 100")
    parser.add_argument(
        "--policy", choices=[policy.value for policy in Policy], help="default: Fixed with --cores, else Burst"
    )
    parser.add_argument("--device", default="0", metavar="UUID|INDEX", help="the GPU; default: %(default)s")
    parser.add_argument("--share", metavar="NAME", help="commands with one name share its limits")
    parser.add_argument(
        "--driver-root", type=Path, default=Path("/"), metavar="DIR", help="where the GPU driver is installed"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="what to run")


def _add_controller(commands: _Commands) -> None:
    parser = _add(commands, "controller", _controller, "publish ResourceSlices and look after ResourceClaims")
    _add_common(parser)
    parser.add_argument("--namespace", metavar="N", help="namespace of the leader's Lease")
    parser.add_argument(
        "--offer-mode",
        choices=get_args(OfferModeName),
        help="how GPUs are offered; default: auto, the best that the API server can carry",
    )
    parser.add_argument(
        "--identity", metavar="NAME", help="name among the replicas; default: the host name and a random part"
    )


def _add_node_agent(commands: _Commands) -> None:
    parser = _add(commands, "node-agent", _node_agent, "prepare claims for the kubelet of this node")
    _add_common(parser)
    parser.add_argument("--node-name", metavar="N", help="name of the Node object")
    parser.add_argument("--pod-uid", metavar="UID", help="UID of the agent's own pod, for updates without a gap")
    for name, text in (
        ("kubelet-dir", f"the kubelet's root directory; default: {names.KUBELET_DIR}"),
        ("cdi-dir", f"where CDI specs are written; default: {names.CDI_DIR}"),
        ("state-dir", f"the agent's own state; default: {names.STATE_DIR}"),
        ("driver-root", "where the GPU driver is installed; default: /"),
        ("driver-root-on-host", "the same folder as the host names it, where that differs"),
        ("hold-back", "GPUs that are not offered, separated by commas: UUID, index, or model:NAME with * and ?"),
        ("ignored-xids", "Xid errors that leave a device healthy, separated by commas"),
        ("overuse-slack-memory", "what the driver may count above a share's limit; default: 256Mi"),
        ("overuse-slack-percent", "the same in percent of the limit, the larger counts; default: 5"),
        (
            "refused-runtimes",
            "handlers of RuntimeClasses that get no share; default: kata*,runsc*,gvisor*",
        ),
        ("monitor-interval-s", "seconds between two looks at the books of all shares; default: 1"),
        ("driver-interval-s", "seconds between two looks at the driver's figures; default: 5"),
        ("steering-interval-s", "seconds between two looks at the GPU time of devices in use; default: 0.05"),
        ("annotation-interval-s", "seconds in which each claim is asked for changes that nobody tells of; default: 60"),
    ):
        parser.add_argument(f"--{name}", metavar="D", help=text)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", metavar="F", help="default: the pod's service account, else ~/.kube/config")
    parser.add_argument("--driver-name", metavar="N", help=f"default: {names.DRIVER_NAME}")
    parser.add_argument(
        "--config", type=Path, metavar="F", help="YAML file with settings; flags and environment go before it"
    )
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help="serves /metrics, /healthz and /readyz")
    parser.add_argument("--log-format", choices=FORMATS)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))


def _add_share(commands: _Commands) -> None:
    parser = commands.add_parser("share", help="show and change the shares of this node")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, function, text in (
        ("list", _share_list, "list all shares"),
        ("show", _share_show, "show one share"),
        ("set", _share_set, "change a share while it lives, within what its claim holds"),
        ("suspend", _share_suspend, "let a share's launches wait"),
        ("resume", _share_resume, "end a suspension"),
    ):
        action = _add(actions, name, function, text)
        action.add_argument(
            "--state-dir", type=Path, default=Path(names.STATE_DIR), metavar="D", help="default: %(default)s"
        )
        if name in {"list", "show"}:
            action.add_argument("-o", "--output", choices=("text", "json"), default="text")
        if name != "list":
            action.add_argument("name", help="name of the share, or the start of it")
        if name == "set":
            action.add_argument("--memory", metavar="Q", help='device memory, such as "2Gi"')
            action.add_argument("--cores", type=int, metavar="N", help="percent of the device's compute time")
            action.add_argument("--priority", type=int, metavar="N", help="among the shares of its device")
            action.add_argument("--reset", action="store_true", help="undo earlier changes first")


def _add_explain(commands: _Commands) -> None:
    parser = _add(commands, "explain", _explain, "say why a claim or pod waits, device by device")
    parser.add_argument("kind", choices=("claim", "pod"))
    parser.add_argument("name")
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("--kubeconfig", metavar="F")
    parser.add_argument("--driver-name", default=names.DRIVER_NAME, metavar="N")


def _run(options: argparse.Namespace) -> int:
    from dra_driver import running
    from kubeletplugin.hardware.driverroots import DriverRoot
    from kubeletplugin.hardware.nvidia import NvidiaDiscovery

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ConfigError("command: missing, expected: dra-driver run [options] -- COMMAND...")
    request = running.ShareRequest(
        memory_bytes=parse_bytes(options.memory, "--memory") if options.memory is not None else None,
        cores_percent=_cores(options.cores),
        policy=Policy(options.policy) if options.policy else None,
    )
    root = options.driver_root.resolve()
    backend = NvidiaDiscovery(DriverRoot(root, on_host=root))
    devices = backend.discover().devices
    device = running.choose_device(devices, options.device)
    name = _share_name(options.share)
    with running.open_share(running.runtime_dir(), name, request, device) as share:
        environment = running.share_environment(share.folder, device.uuid, root, os.environ)
        with running.steered(running.runtime_dir(), name, backend.gpu_times()):
            return running.run_command(command, environment, share.lock)


def _cores(cores: int | None) -> int | None:
    if cores is not None and not 1 <= cores <= names.CORES_PER_DEVICE:
        raise ConfigError(
            f"--cores: found {cores}, expected a whole number from 1 to {names.CORES_PER_DEVICE} (percent of a device)"
        )
    return cores


def _share_name(name: str | None) -> str:
    if name is None:
        return f"run-{os.getpid()}"
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or len(name) > 63:
        raise ConfigError(f"--share: found {name!r}, expected at most 63 letters, digits, - and _")
    return name


def _controller(options: argparse.Namespace) -> int:
    from dra_driver.wiring import run_controller

    return run_controller(options.config, _flags(options))


def _node_agent(options: argparse.Namespace) -> int:
    from dra_driver.wiring import run_node_agent

    return run_node_agent(options.config, _flags(options))


def _flags(options: argparse.Namespace) -> dict[str, object]:
    return {key: value for key, value in vars(options).items() if key not in {"command_function", "config"}}


def _share_list(options: argparse.Namespace) -> int:
    from dra_driver import sharing

    shares = sharing.read_shares(options.state_dir)
    print(sharing.format_json(shares) if options.output == "json" else sharing.format_table(shares))
    return 0


def _share_show(options: argparse.Namespace) -> int:
    from dra_driver import sharing

    share = sharing.find_share(options.state_dir, options.name)
    print(sharing.format_json([share]) if options.output == "json" else sharing.format_share(share))
    return 0 if not share.problem else 1


def _share_set(options: argparse.Namespace) -> int:
    from dra_driver import changing

    wishes = {name: getattr(options, name) for name in ("memory", "cores", "priority")}
    given = {name: value for name, value in wishes.items() if value is not None}
    if not given and not options.reset:
        raise ConfigError("share set: found nothing to change, expected --memory, --cores, --priority or --reset")
    print(changing.change_share(options.state_dir, options.name, given, reset=options.reset))
    return 0


def _share_suspend(options: argparse.Namespace) -> int:
    from dra_driver import changing

    print(changing.change_share(options.state_dir, options.name, {"suspended": True}))
    return 0


def _share_resume(options: argparse.Namespace) -> int:
    from dra_driver import changing

    print(changing.change_share(options.state_dir, options.name, {"suspended": None}))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from api.httpkube import HTTPKubeClient
    from controller.explaining import explain_claim, explain_pod

    kube = HTTPKubeClient(options.kubeconfig)
    explain = explain_claim if options.kind == "claim" else explain_pod
    print(explain(kube, options.namespace, options.name, options.driver_name))
    return 0


def _crds(_options: argparse.Namespace) -> int:
    print(yaml.safe_dump(nodeinventory.crd(), sort_keys=False), end="")
    return 0
