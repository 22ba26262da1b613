"""`make demo` and `make demo-down`: shows the main job on a real Kubernetes, and removes all of it again."""

import argparse
import sys
import time

from deploy.demo import checks, containers, processes
from deploy.demo.looking import look
from deploy.demo.scenario import start_tenants
from deploy.demo.tenants import GPU, TENANTS, WAITING_POD
from deploy.local.caching import cache_dir, locked
from deploy.local.cluster import Cluster
from deploy.local.endings import run_to_end
from deploy.local.prerequisites import reason_for_process_nodes

CLUSTER = "demo"
_BEGAN_S = time.monotonic()


def main() -> int:
    """Run the demo; return 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--down", action="store_true", help="remove the demo's cluster")
    options = parser.parse_args()
    return run_to_end("demo", _down if options.down else _show_alone, remedy="make demo-down")


def _show_alone() -> int:
    """Show it when no other demo is being shown: from another clone, it would be on the same cluster."""
    running = cache_dir() / "locks" / "demo"
    with locked(running, on_wait=lambda: _say("waiting for another `make demo`, which uses the same cluster")):
        return _show()


def _down() -> int:
    Cluster(CLUSTER).down()
    return 0


def _show() -> int:
    cluster = Cluster(CLUSTER)
    _say(f"one node with one simulated GPU of {GPU.memory_bytes >> 30} GiB")
    reason = reason_for_process_nodes()
    if reason:
        _say(f"its pods are plain processes, not containers: {reason}")
    scenario = (processes if reason else containers).bring_up(cluster, [GPU], _say)
    asked = ", ".join(f"{t.name} with {t.memory_mib} MiB and {t.cores_percent} cores" for t in TENANTS)
    _say(f"starting {asked}, {WAITING_POD} with more than any GPU has")
    start_tenants(scenario)
    _say("checking what each of them sees")
    found = look(scenario)
    failed = sum(not check.ok for check in found)
    passed_s = time.monotonic() - _BEGAN_S
    print(f"\n{checks.format_report(found)}\n")
    print(f"{len(found) - failed} of {len(found)} checks passed, after {passed_s:.0f} s.")
    print(f"The cluster stays up. Look around:  .venv/bin/python -m deploy.local --name {CLUSTER} kubectl get pods -A")
    print("Remove it:                          make demo-down")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(f"==> {time.monotonic() - _BEGAN_S:4.0f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
