"""The command line of `dra-driver` (as a kubectl plug-in: `kubectl vgpu`).

Parses, loads what the command needs and hands over; decides nothing. Exit status: 0, 2 for wrong input (with a line
that says what is expected), 1 for everything else, as if the signal had ended it after Ctrl-C or where nobody reads on;
`run` ends with the status of its command.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from api import names, nodeinventory
from api.errors import ConfigError, VGPUError
from api.quantities import parse_bytes
from api.vgpuconfig import Policy
from dra_driver import __version__, devicecommands, faultcommands, sharecommands
from dra_driver.parsers import Command, Commands, add_cluster, add_command, add_settings
from dra_driver.settings import ControllerOptions, NodeAgentOptions

_PIPE_CLOSED, _INTERRUPTED = 128 + signal.SIGPIPE, 128 + signal.SIGINT
"""Exit statuses as of programs that these signals end: `| head` has read enough, or Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = _parser().parse_args(arguments)
    command: Command = options.command_function
    try:
        status = command(options)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(error, 2)
    except VGPUError as error:
        return _fail(error, 1)
    except PermissionError as error:
        return _fail(VGPUError(f"{error.filename}: found {error.strerror}, expected to be run by root"), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def _fail(error: VGPUError, status: int) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"dra-driver: {line}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dra-driver", description="Fractional GPUs for Kubernetes, by Dynamic Resource Allocation"
    )
    parser.add_argument("--version", action="version", version=f"dra-driver {__version__}")
    commands: Commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    controller = add_command(
        commands, "controller", _controller, "run the controller: publish ResourceSlices, explain why claims wait"
    )
    add_settings(controller, ControllerOptions)
    node_agent = add_command(
        commands, "node-agent", _node_agent, "run the node agent: prepare claims for the kubelet of this node"
    )
    add_settings(node_agent, NodeAgentOptions)
    _add_explain(commands)
    sharecommands.add(commands)
    devicecommands.add(commands)
    faultcommands.add(commands)
    add_command(commands, "crds", _crds, "print the CustomResourceDefinitions, for kubectl apply")
    return parser


def _add_run(commands: Commands) -> None:
    parser = add_command(commands, "run", _run, "run a command inside a share of a GPU of this machine")
    parser.add_argument("--memory", metavar="Q", help='device memory, such as "2Gi"; default: all of it')
    parser.add_argument(
        "--cores", type=int, metavar="N", help="percent of the GPU's time, 1 to 100; default: idle time only"
    )
    parser.add_argument(
        "--policy",
        choices=[policy.value for policy in Policy],
        help="Burst: take idle time beyond the cores; default: Fixed with --cores, else Burst",
    )
    parser.add_argument("--device", default="0", metavar="UUID|INDEX", help="the GPU; default: %(default)s")
    parser.add_argument("--share", metavar="NAME", help="use one share for all commands with this name")
    parser.add_argument(
        "--driver-root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where the GPU driver is installed; default: %(default)s",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="what to run")
    parser.epilog = (
        f"Shares are kept in ${names.ENV_RUNTIME_DIR}; default: /run/dra-driver-vgpu/run for root, else a folder of "
        "the user in $XDG_RUNTIME_DIR or the folder for temporary files."
    )


def _add_explain(commands: Commands) -> None:
    parser = add_command(commands, "explain", _explain, "say why a claim or pod waits, device by device")
    parser.add_argument("kind", choices=("claim", "pod"), help="what waits")
    parser.add_argument("name", type=_object_name, help="its name")
    parser.add_argument(
        "-n",
        "--namespace",
        type=_object_name,
        default="default",
        metavar="NAME",
        help="its namespace; default: %(default)s",
    )
    add_cluster(parser)
    parser.add_argument("--driver-name", default=names.DRIVER_NAME, metavar="NAME", help="default: %(default)s")


def _object_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of an object in the cluster")
    return text


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
