"""`make bench`: all measurements, one after the other. Figures mean something on a machine that does nothing else."""

import contextlib
import os
import subprocess
import sys

from deploy.demo.containers import bring_up
from deploy.demo.tenants import GPU
from deploy.local.cluster import Cluster
from tests.bench import fleet, monitor, pods
from tests.bench.simulated import NODE_COUNT


def main() -> None:
    """Measure on a node of our own, and remove it."""
    print("A round of the monitor:")
    monitor.main()
    with Cluster(f"bench-{os.getpid()}") as cluster:
        cluster.up(nodes=1, dies_with_caller=True)
        with contextlib.redirect_stdout(sys.stderr):
            scenario = bring_up(cluster, [GPU], print)
        print("\nPods with a claim and without, side by side on a real node:")
        pods.measure_starts(scenario)
        print("\nThe node agent when nothing happens:")
        pods.measure_idle_agent(scenario)
        print("\nNodePrepareResources and NodeUnprepareResources, claims from a real API server:", flush=True)
        # In a process of its own: it starts others from its own command line.
        prepare = [sys.executable, "-m", "tests.bench.prepare", "--kubeconfig", str(cluster.kubeconfig)]
        subprocess.run(prepare, check=True)
    print(f"\nA fleet of {NODE_COUNT} simulated nodes, the real scheduler:", flush=True)
    fleet.main()


if __name__ == "__main__":
    main()
