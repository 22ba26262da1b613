"""The command line of the local cluster: `python -m deploy.local up|upgrade|status|kubectl|helm|load-image|down`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.local import versions
from deploy.local.cluster import Cluster
from deploy.local.endings import run_to_end
from deploy.local.errors import LocalClusterError
from deploy.local.layout import UPGRADED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    return run_to_end("error", lambda: _run(options), remedy=f"python -m deploy.local --name {options.name} down")


def _run(options: argparse.Namespace) -> int:
    gates = None if options.feature_gates is None else versions.parse_gates(options.feature_gates)
    cluster = Cluster(options.name, state_dir=options.state_dir, kubernetes=options.kubernetes, feature_gates=gates)
    return int(options.run(cluster, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="A real Kubernetes on one machine.")
    parser.add_argument("--name", default="default", help="the cluster's name (default: %(default)s)")
    parser.add_argument("--state-dir", type=Path, help="where everything of the cluster lies (default: in the cache)")
    known = ", ".join(versions.pinned())
    parser.add_argument("--kubernetes", metavar="VERSION", help=f"one of {known}, or as 1.34, oldest, newest")
    parser.set_defaults(feature_gates=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="build what is not built, start what does not run, wait until it is ready")
    up.add_argument("--nodes", type=int, default=1, help="how many nodes; 0 is the control plane alone")
    up.add_argument("--install-packages", action="store_true", help="let apt-get install what is missing")
    up.set_defaults(run=_up)
    upgrade = commands.add_parser("upgrade", help="change version and feature gates in place; what runs goes on")
    upgrade.add_argument("version", metavar="VERSION", help="as for --kubernetes")
    upgrade.add_argument("--only", metavar="COMPONENT,...", help=f"some of {', '.join(UPGRADED)}; default: all")
    upgrade.set_defaults(run=_upgrade)
    for starting in (up, upgrade):
        starting.add_argument("--feature-gates", metavar="NAME=true,...", help="Kubernetes' own, for all components")
    build = commands.add_parser("build", help="build what a cluster needs and start nothing")
    build.set_defaults(run=_build)
    commands.add_parser("status", help="show the processes and the nodes").set_defaults(run=_status)
    for program in ("kubectl", "helm"):
        command = commands.add_parser(
            program, help=f"run {program} as administrator", add_help=False, prefix_chars="\0"
        )
        command.add_argument("arguments", nargs=argparse.REMAINDER)  # and not "*", which would swallow "--"
        command.set_defaults(run=_exec, program=program)
    load = commands.add_parser("load-image", help="give every node the image in an OCI archive")
    load.add_argument("archive", type=Path)
    load.set_defaults(run=_load_image)
    commands.add_parser("down", help="remove everything of the cluster").set_defaults(run=_down)
    return parser


def _up(cluster: Cluster, options: argparse.Namespace) -> int:
    began = time.monotonic()
    cluster.up(options.nodes, install_packages=options.install_packages)
    print(f"cluster {options.name} is ready after {time.monotonic() - began:.1f} s")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _upgrade(cluster: Cluster, options: argparse.Namespace) -> int:
    began = time.monotonic()
    only = options.only.split(",") if options.only else UPGRADED
    cluster.upgrade(options.version, versions.parse_gates(options.feature_gates or ""), only=only)
    print(f"cluster {options.name} is ready after {time.monotonic() - began:.1f} s")
    return 0


def _build(cluster: Cluster, _options: argparse.Namespace) -> int:
    cluster.build()
    return 0


def _status(cluster: Cluster, options: argparse.Namespace) -> int:
    found = cluster.status()
    if not found:
        print(f"cluster {options.name} is not up")
        return 1
    for process in found:
        print(f"{process.name:40} {process.pid or 'not running'}")
    print(f"kubeconfig {cluster.kubeconfig}")
    return 0 if all(process.pid for process in found) else 1


def _exec(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.program == "kubectl" and not cluster.status():  # else it would look for one on localhost:8080
        raise LocalClusterError(f"cluster {options.name} is not up: python -m deploy.local --name {options.name} up")
    program = str(cluster.program(options.program))
    os.execve(program, [program, *options.arguments], cluster.environment())  # noqa: S606 - as the shell would, signals and all


def _load_image(cluster: Cluster, options: argparse.Namespace) -> int:
    print(cluster.load_image(options.archive))
    return 0


def _down(cluster: Cluster, options: argparse.Namespace) -> int:
    cluster.down()
    print(f"cluster {options.name} is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
