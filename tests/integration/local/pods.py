"""Pods of the tests of the local cluster: a shell script each, or a Python script."""

import json
from collections.abc import Sequence
from typing import Any

from deploy.local.cluster import Cluster

SHELL_IMAGE = "localhost/dra-driver-vgpu/workload:local"
PYTHON_IMAGE = "localhost/tests/python:local"
TIMEOUT = "--timeout=150s"


class Pods:
    """Runs pods in the namespace `default` of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def start(self, name: str, command: Sequence[str], image: str = SHELL_IMAGE, **spec: object) -> None:
        container = {"name": "main", "image": image, "imagePullPolicy": "Never", "command": list(command)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container], **spec},
        }
        self._cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))

    def wait_for_phase(self, name: str, phase: str) -> None:
        self._cluster.kubectl("wait", f"--for=jsonpath={{.status.phase}}={phase}", f"pod/{name}", TIMEOUT)

    def logs(self, name: str) -> str:
        return self._cluster.kubectl("logs", name)

    def terminated(self, name: str) -> dict[str, Any]:
        """Return how the pod's container ended."""
        pod = json.loads(self._cluster.kubectl("get", "pod", name, "-o", "json"))
        ended: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        return ended
