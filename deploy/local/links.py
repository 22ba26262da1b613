"""The bridge between the machine and the nodes, and the link of each node. Called by cluster.py, nodes.py, teardown.py.

No address translation and no firewall rules: the machine reaches nodes and pods, they reach the machine's address on
the bridge (the API server), and nobody reaches anything beyond.
"""

import ipaddress
import json
import subprocess
from typing import Any

from deploy.local.caching import cache_dir, locked
from deploy.local.errors import StartError
from deploy.local.layout import Addresses, Layout

FIRST_SUBNET = 130
SUBNETS = 120


def run_ip(*arguments: str) -> str:
    """Run `ip`; StartError with its message if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def create_bridge(layout: Layout) -> Addresses:
    """Make the cluster's bridge with a network that nobody on this machine uses, and return its addresses."""
    # Two clusters that start at once must not choose the same network.
    with locked(cache_dir() / "locks" / "networks"):
        taken = _networks_in_use()
        first = int(layout.id, 16)
        for offset in range(SUBNETS):
            subnet = FIRST_SUBNET + (first + offset) % SUBNETS
            if not any(network.overlaps(ipaddress.ip_network(f"10.{subnet}.0.0/16")) for network in taken):
                addresses = Addresses.on_bridge(subnet)
                ensure_bridge(layout, addresses)
                return addresses
    last = FIRST_SUBNET + SUBNETS - 1
    raise StartError(f"no network between 10.{FIRST_SUBNET}.0.0/16 and 10.{last}.0.0/16 is free on this machine")


def ensure_bridge(layout: Layout, addresses: Addresses) -> None:
    """Make the bridge, where it is not there, with the addresses of the cluster."""
    if not exists(layout.bridge):
        run_ip("link", "add", layout.bridge, "type", "bridge")
    run_ip("addr", "replace", f"{addresses.gateway}/24", "dev", layout.bridge)
    run_ip("addr", "replace", f"{addresses.host}/32", "dev", layout.bridge)
    run_ip("link", "set", layout.bridge, "up")


def connect_node(layout: Layout, addresses: Addresses, index: int, nodes: int, holder_pid: int) -> None:
    """Give the network namespace of `holder_pid` a link on the bridge, its address, and the routes to all pods."""
    outside = f"vg{layout.id}n{index}"
    if exists(outside):
        run_ip("link", "del", outside)
    run_ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(holder_pid))
    run_ip("link", "set", outside, "master", layout.bridge, "up")
    inside = ["nsenter", "--target", str(holder_pid), "--net", "ip"]
    commands = [
        ["link", "set", "lo", "up"],
        ["addr", "add", f"{addresses.node(index)}/24", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["route", "add", "default", "via", addresses.gateway],
    ]
    commands += [
        ["route", "add", addresses.pods(other), "via", addresses.node(other)]
        for other in range(nodes)
        if other != index
    ]
    for command in commands:
        done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(f"ip {' '.join(command)} in node {index}: {done.stderr.strip()}")
    run_ip("route", "replace", addresses.pods(index), "via", addresses.node(index), "dev", layout.bridge)


def links_of(layout: Layout) -> list[str]:
    """Return the names of the links that belong to this cluster."""
    names = [str(link["ifname"]) for link in json.loads(run_ip("-json", "link", "show"))]
    return [name for name in names if name == layout.bridge or name.startswith(f"vg{layout.id}n")]


def exists(link: str) -> bool:
    """Tell whether a link of this name is there."""
    return subprocess.run(["ip", "link", "show", "dev", link], capture_output=True, check=False).returncode == 0


def _networks_in_use() -> list[ipaddress.IPv4Network]:
    interfaces: list[dict[str, Any]] = json.loads(run_ip("-json", "-4", "addr", "show"))
    addresses = [address for interface in interfaces for address in interface["addr_info"]]
    used = [ipaddress.IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False) for address in addresses]
    routes: list[dict[str, Any]] = json.loads(run_ip("-json", "-4", "route", "show"))
    used += [ipaddress.IPv4Network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]
    return used
