"""Which versions of Kubernetes can be built here, and what each of them takes. Plain data; used by all of deploy.local.

A version is one file in go/kubernetes: `go.mod` for the default one, `go-<version>.mod` for each other.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from deploy.local.errors import LocalClusterError

MODULES = Path(__file__).parent / "go" / "kubernetes"
VERSION_VARIABLE = "VGPU_K8S_VERSION"
GATES_VARIABLE = "VGPU_K8S_FEATURE_GATES"

FeatureGates = Mapping[str, bool]

_TAINT_RULES = {
    33: ("DRADeviceTaints", "v1alpha3"),
    34: ("DRADeviceTaints", "v1alpha3"),
    35: ("DRADeviceTaintRules", "v1alpha3"),
    36: ("DRADeviceTaintRules", "v1beta2"),
}
"""By minor version, the gate of DeviceTaintRules, and the version of the API in which its scheduler reads them."""


def pinned() -> dict[str, Path]:
    """Return the go.mod of each version that is pinned, such as `1.36.3`, the oldest first."""
    found = {}
    for path in MODULES.glob("*.mod"):
        if pin := re.search(r"k8s\.io/kubernetes v(\S+)", path.read_text()):
            found[pin[1]] = path
    return {version: found[version] for version in sorted(found, key=_numbers)}


def resolve(version: str) -> str:
    """Return the pinned version that is meant by `1.34.10`, `1.34`, `oldest` or `newest`.

    Raises:
        LocalClusterError: none is pinned by that name; the message has those that are.
    """
    known = list(pinned())
    named = {"oldest": known[0], "newest": known[-1]}
    for candidate in known:
        named |= {candidate: candidate, candidate.rpartition(".")[0]: candidate}
    if version not in named:
        raise LocalClusterError(f"no Go module pins Kubernetes {version}, expected one of {', '.join(known)}")
    return named[version]


def default() -> str:
    """Return the version that go.mod itself pins."""
    return next(version for version, path in pinned().items() if path.name == "go.mod")


def chosen() -> tuple[str, dict[str, bool]]:
    """Return version and feature gates of a new cluster that is told neither: by the environment, else the default."""
    version = os.environ.get(VERSION_VARIABLE)
    return resolve(version) if version else default(), parse_gates(os.environ.get(GATES_VARIABLE, ""))


def minor(version: str) -> int:
    """Return 34 for 1.34.10."""
    return _numbers(version)[1]


def feature_gates(version: str, chosen: FeatureGates) -> dict[str, bool]:
    """Return the gates that all components of a version get: Dynamic Resource Allocation, and what was chosen."""
    # Beta and off in 1.32 and 1.33, general from 1.34 on.
    needed = {"DynamicResourceAllocation": True} if minor(version) < 34 else {}
    return {**needed, **chosen}


def runtime_config(version: str, gates: FeatureGates) -> str:
    """Return the API server's --runtime-config by which it serves Dynamic Resource Allocation.

    Beta versions are off unless asked for, as an administrator of a cluster of that version has to do too. Where the
    gate of DeviceTaintRules is on in `gates`, the version that has them is served as well.
    """
    served = {32: ("v1beta1",), 33: ("v1beta1", "v1beta2")}.get(minor(version), ("v1",))
    gate, added = _TAINT_RULES.get(minor(version), ("", ""))
    if gates.get(gate):
        served += (added,)
    return ",".join(f"resource.k8s.io/{name}=true" for name in served)


def build_tags(version: str) -> tuple[str, ...]:
    """Return the Go build tags for the one interface that differs between the versions."""
    return ("kubelet_without_context",) if minor(version) < 34 else ()


def parse_gates(text: str) -> dict[str, bool]:
    """Read `DRAConsumableCapacity=true,DRADeviceTaints=false`, as Kubernetes' own components do.

    Raises:
        LocalClusterError: names the part that is no such pair.
    """
    gates = {}
    for pair in filter(None, text.split(",")):
        found = re.fullmatch(r"(\w+)=(true|false)", pair)
        if found is None:
            raise LocalClusterError(f"feature gates: found {pair!r}, expected NAME=true or NAME=false")
        gates[found[1]] = found[2] == "true"
    return gates


def format_gates(gates: FeatureGates) -> str:
    """Return gates as the components' flag takes them; empty for none."""
    return ",".join(f"{gate}={str(on).lower()}" for gate, on in gates.items())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
