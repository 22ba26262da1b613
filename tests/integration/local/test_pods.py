"""What people expect of pods works on the local cluster."""

from pathlib import Path

import pytest

from deploy.local.cluster import Cluster
from deploy.local.errors import LocalClusterError
from tests.integration.local.conftest import needs_containers
from tests.integration.local.pods import PYTHON_IMAGE, Pods

pytestmark = [pytest.mark.cluster, needs_containers]

# Asks the API server who it is, the way every client library in a pod does: address from the environment, the
# mounted certificate authority, the pod's own token.
ASK_API_SERVER = """
import json, os, ssl, urllib.request
mounted = "/var/run/secrets/kubernetes.io/serviceaccount"
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
url += "/apis/authentication.k8s.io/v1/selfsubjectreviews"
body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
headers = {"Authorization": "Bearer " + open(mounted + "/token").read(), "Content-Type": "application/json"}
context = ssl.create_default_context(cafile=mounted + "/ca.crt")
with urllib.request.urlopen(urllib.request.Request(url, body, headers), context=context, timeout=20) as answer:
    print(json.load(answer)["status"]["userInfo"]["username"])
"""


def test_a_pod_runs_to_its_end_and_its_output_and_exit_status_can_be_read(pods: Pods) -> None:
    pods.start("fails", ["sh", "-c", "echo to the log; exit 3"])
    pods.wait_for_phase("fails", "Failed")
    assert pods.logs("fails") == "to the log\n"
    assert pods.terminated("fails")["exitCode"] == 3


def test_a_program_can_be_run_in_a_running_pod(cluster: Cluster, pods: Pods) -> None:
    pods.start("stays", ["sleep", "600"])
    pods.wait_for_phase("stays", "Running")
    assert cluster.kubectl("exec", "stays", "--", "cat", "/proc/1/comm") == "sleep\n"


def test_an_error_of_kubectl_is_told(cluster: Cluster) -> None:
    with pytest.raises(LocalClusterError, match='pods "nobody" not found'):
        cluster.kubectl("get", "pod", "nobody")


@pytest.mark.parametrize("host_network", [False, True], ids=["own network", "network of the node"])
def test_a_pod_reaches_the_api_server_as_its_service_account(
    cluster: Cluster, pods: Pods, python_image: Path, host_network: bool
) -> None:
    name = f"asks-{str(host_network).lower()}"
    cluster.load_image(python_image)
    pods.start(name, ["python3", "-c", ASK_API_SERVER], PYTHON_IMAGE, hostNetwork=host_network)
    pods.wait_for_phase(name, "Succeeded")
    assert pods.logs(name) == "system:serviceaccount:default:default\n"


def test_what_a_pod_writes_to_the_kubelets_standard_folders_lies_in_the_state_folder(
    cluster: Cluster, pods: Pods
) -> None:
    paths = {
        "/var/run/cdi": cluster.node().cdi,
        "/var/lib/kubelet/plugins": cluster.node().kubelet / "plugins",
        "/var/lib/dra-driver-vgpu": cluster.node().agent,
    }
    volumes = [{"name": f"v{index}", "hostPath": {"path": path}} for index, path in enumerate(paths)]
    mounts = [{"name": f"v{index}", "mountPath": f"/mnt/{index}"} for index in range(len(paths))]
    container = {
        "name": "main",
        "image": "localhost/dra-driver-vgpu/workload:local",
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", "for folder in /mnt/*; do echo written >$folder/by-pod; done"],
        "volumeMounts": mounts,
    }
    pods.start("writes", [], containers=[container], volumes=volumes)
    pods.wait_for_phase("writes", "Succeeded")
    assert [(folder / "by-pod").read_text() for folder in paths.values()] == ["written\n"] * 3
