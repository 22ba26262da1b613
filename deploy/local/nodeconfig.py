"""The configuration files of one node: containerd, its network, the kubelet. Pure text, written by nodes.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAUSE_IMAGE = "localhost/dra-driver-vgpu/pause:1"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
# What a node without the system's integration cannot use, or would use outside of its own folders.
DISABLED_PLUGINS = (
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.tracing.processor.v1.otlp",
)


@dataclass(frozen=True)
class NodeSettings:
    """What the files of one node depend on."""

    name: str
    address: str
    pods: str
    directory: Path
    pki: Path
    tools: Path
    cgroup: str
    snapshotter: str
    feature_gates: dict[str, bool]


def containerd(settings: NodeSettings) -> str:
    """Return containerd's configuration (TOML, version 3)."""
    runtime = "io.containerd.cri.v1.runtime"
    images = "io.containerd.cri.v1.images"
    return f"""\
version = 3
root = "{settings.directory}/containerd"
state = "/run/containerd"
disabled_plugins = [{", ".join(f'"{plugin}"' for plugin in DISABLED_PLUGINS)}]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins.'{images}']
snapshotter = "{settings.snapshotter}"
[plugins.'{images}'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins.'{runtime}']
enable_cdi = true
cdi_spec_dirs = ["/var/run/cdi"]
# Lowering a score takes CAP_SYS_RESOURCE, which even root may lack.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'{runtime}'.cni]
bin_dirs = ["{settings.tools}"]
conf_dir = "{settings.directory}/cni"
use_internal_loopback = true
[plugins.'{runtime}'.containerd]
default_runtime_name = "runc"
[plugins.'{runtime}'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{settings.tools}/containerd-shim-runc-v2"
[plugins.'{runtime}'.containerd.runtimes.runc.options]
BinaryName = "{settings.tools}/runc"
SystemdCgroup = false

[plugins.'io.containerd.grpc.v1.cri']
stream_server_address = "127.0.0.1"
stream_server_port = "0"
"""


def network(settings: NodeSettings) -> dict[str, Any]:
    """Return the CNI configuration: a link of its own for each pod, routed by the node."""
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": settings.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def kubelet(settings: NodeSettings) -> dict[str, Any]:
    """Return the KubeletConfiguration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": settings.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(settings.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(settings.pki / "server.crt"),
        "tlsPrivateKeyFile": str(settings.pki / "server.key"),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "resolvConf": str(settings.directory / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # lowering it takes CAP_SYS_RESOURCE
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
        # The machine's disk and memory belong to others: a full disk is theirs to mend, not a reason to evict.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
        "featureGates": settings.feature_gates,
        "logging": {"verbosity": 2},
    }
