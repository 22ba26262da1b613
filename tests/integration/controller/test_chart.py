"""The chart on a real API server: it installs, its rights are enough and not more, agents write for their own node."""

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from api import kube as kube_api
from api import names, nodeinventory
from api.errors import KubeError
from api.httpkube import HTTPKubeClient
from api.kube import Resource
from controller.classes import ClassSettings
from controller.controller import Controller, ControllerSettings
from controller.crds import CRDS, update_crd
from deploy.local import building
from deploy.local.cluster import Cluster as LocalCluster
from dra_driver.settings import ControllerOptions, NodeAgentOptions, load_settings
from tests.integration.controller.conftest import SERVICE_ACCOUNTS, Cluster
from tests.unit.controller.builders import (
    CLAIMS,
    CLASSES,
    SLICES,
    claim,
    facts,
    state_inventory,
    status,
    wait_until,
)

pytestmark = pytest.mark.cluster

DEPLOY = Path(__file__).parents[3] / "deploy"
CHART = DEPLOY / "helm" / "dra-driver-vgpu"
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))
RELEASE = "vgpu"
CONTROLLER = "vgpu-dra-driver-vgpu-controller"
AGENT = "vgpu-dra-driver-vgpu-node-agent"


@pytest.fixture(scope="module")
def helm() -> Path:
    return building.tools() / "helm"


def _is_stored(cluster: Cluster, device_class: dict[str, Any]) -> bool:
    stored = cluster.kube.get(CLASSES, device_class["metadata"]["name"])
    return bool(stored["spec"] == device_class["spec"])


def run(helm: Path, *arguments: str) -> str:
    done = subprocess.run([helm, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(helm: Path, *arguments: str) -> list[dict[str, Any]]:
    text = run(helm, "template", RELEASE, str(CHART), "--kube-version", "1.36.0", *arguments)
    return [obj for obj in yaml.safe_load_all(text) if obj]


def test_the_chart_has_no_fault_that_helm_finds(helm: Path) -> None:
    assert "0 chart(s) failed" in run(helm, "lint", "--strict", str(CHART))


def test_a_program_that_takes_long_to_load_is_not_killed_for_it(helm: Path) -> None:
    pods = [obj["spec"]["template"]["spec"] for obj in rendered(helm) if obj["kind"] in ("Deployment", "DaemonSet")]
    probes = [container["startupProbe"] for pod in pods for container in pod["containers"]]
    assert [(probe["httpGet"]["path"], probe["periodSeconds"] * probe["failureThreshold"]) for probe in probes] == [
        ("/healthz", 120),
        ("/healthz", 120),
    ]


def test_the_driver_root_is_mounted_where_the_agent_is_told(helm: Path) -> None:
    for root, inside, told in (("/", "/driver-root", ["/"]), ("/opt/driver", "/opt/driver", [])):
        (agent,) = [
            obj for obj in rendered(helm, "--set", f"nodeAgent.driverRoot={root}") if obj["kind"] == "DaemonSet"
        ]
        (container,) = agent["spec"]["template"]["spec"]["containers"]
        assert f"--driver-root={inside}" in container["args"]
        assert [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "driver-root"] == [inside]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert [env[name] for name in env if name == "DRA_DRIVER_DRIVER_ROOT_ON_HOST"] == told


def test_the_prometheus_operator_gets_what_it_is_asked_to_watch_and_nothing_unasked(helm: Path) -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    assert [obj for obj in rendered(helm) if obj["kind"] in kinds] == []
    flags = [
        "monitoring.podMonitor.enabled=true",
        "monitoring.alerts.enabled=true",
        "monitoring.alerts.labels.team=gpu",
    ]
    found = rendered(helm, *(part for flag in flags for part in ("--set", flag)))
    monitor, rules = (next(obj for obj in found if obj["kind"] == kind) for kind in ("PodMonitor", "PrometheusRule"))
    pods = [obj["spec"]["template"] for obj in found if obj["kind"] in ("Deployment", "DaemonSet")]
    assert len(pods) == 2
    for pod in pods:
        assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert [port["name"] for port in pod["spec"]["containers"][0]["ports"]] == ["metrics"]
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "30s", "honorLabels": True}]
    assert rules["metadata"]["labels"]["team"] == "gpu"
    (group,) = rules["spec"]["groups"]
    assert group["rules"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_the_agent_reads_the_settings_of_the_chart(helm: Path) -> None:
    values = {
        "nodeAgent.holdBack": ["GPU-1", 3, "model:*Tesla T4*"],
        "nodeAgent.ignoredXids": [74, 95],
        "nodeAgent.intervals": {"books": 0.5, "driver": 10, "annotations": 30, "steering": 0.2},
        "nodeAgent.overuseSlack": {"memory": "1Gi", "percent": 0},
        "nodeAgent.refusedRuntimes": [],
    }
    given = [part for key, value in values.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
    assert _agent_options(rendered(helm, *given)) == {
        "hold_back": ("GPU-1", "3", "model:*Tesla T4*"),
        "ignored_xids": (74, 95),
        "monitor_interval_s": 0.5,
        "driver_interval_s": 10.0,
        "annotation_interval_s": 30.0,
        "steering_interval_s": 0.2,
        "overuse_slack_memory": 1 << 30,
        "overuse_slack_percent": 0,
        "refused_runtimes": (),
    }


def test_an_agent_that_refuses_no_runtime_may_read_no_pods(helm: Path) -> None:
    for given, expected in ((["--set-json", "nodeAgent.refusedRuntimes=[]"], set()), ([], {"pods", "runtimeclasses"})):
        (role,) = (
            obj
            for obj in rendered(helm, *given)
            if obj["kind"] == "ClusterRole" and obj["metadata"]["name"].endswith("-node-agent")
        )
        readable = {resource for rule in role["rules"] for resource in rule["resources"]}
        assert readable & {"pods", "runtimeclasses"} == expected


def test_the_settings_of_the_agent_in_the_chart_are_the_defaults_of_the_program(helm: Path) -> None:
    for field, value in _agent_options(rendered(helm)).items():
        assert value == NodeAgentOptions.model_fields[field].default, field


def _agent_options(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the program makes of the flags that have a value in the chart."""
    (agent,) = (obj for obj in objects if obj["kind"] == "DaemonSet")
    (container,) = agent["spec"]["template"]["spec"]["containers"]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"][1:])
    options = load_settings(NodeAgentOptions, None, {name.replace("-", "_"): text for name, text in flags.items()}, {})
    fields = (
        "hold_back ignored_xids monitor_interval_s driver_interval_s annotation_interval_s steering_interval_s "
        "overuse_slack_memory overuse_slack_percent refused_runtimes"
    )
    return {field: getattr(options, field) for field in fields.split()}


def test_the_program_reads_the_rules_of_the_chart(helm: Path, tmp_path: Path) -> None:
    rules = 'offers=[{"nodeLabels":{"pool":"a"},"order":"spread","slots":[{"memory":"10Gi","count":4}]}]'
    objects = rendered(helm, "--set", "offerMode=slots", "--set-json", rules)
    (settings,) = (obj for obj in objects if obj["kind"] == "ConfigMap" and "config.yaml" in obj.get("data", {}))
    file = tmp_path / "config.yaml"
    file.write_text(settings["data"]["config.yaml"])
    options = load_settings(ControllerOptions, file, {}, {})
    assert options.offer_mode == "slots"
    (rule,) = options.offers
    assert (rule.node_labels, rule.order) == ({"pool": "a"}, "spread")


def test_on_the_network_of_the_node_a_new_controller_waits_for_the_port_of_the_one_before(helm: Path) -> None:
    for value, expected in (("false", None), ("true", {"maxSurge": 0, "maxUnavailable": 1})):
        found = rendered(helm, "--set", f"controller.hostNetwork={value}")
        (controller,) = (obj["spec"] for obj in found if obj["kind"] == "Deployment")
        assert controller.get("strategy", {}).get("rollingUpdate") == expected


@pytest.mark.parametrize(("kubelet", "surge"), [("v1.32.10", None), ("v1.33.6-gke.100", 1)])
def test_agents_are_updated_one_after_the_other_while_a_kubelet_knows_one_instance_only(
    helm: Path, cluster: Cluster, kubelet: str, surge: int | None
) -> None:
    node = cluster.create(kube_api.NODES, {"kind": "Node", "metadata": {"name": "old"}})
    facts_of_node = {**node["status"]["nodeInfo"], "kubeletVersion": kubelet}
    cluster.kube.patch(kube_api.NODES, node, {"status": {"nodeInfo": facts_of_node}}, "status")
    arguments = [
        "--namespace",
        cluster.namespace,
        "--kubeconfig",
        cluster.kubeconfig,
        "--skip-crds",
        "--dry-run=server",
    ]
    text = run(helm, "install", "dry", str(CHART), *arguments).partition("\nMANIFEST:\n")[2].partition("\nNOTES:\n")[0]
    (agent,) = (obj for obj in yaml.safe_load_all(text) if obj and obj["kind"] == "DaemonSet")
    assert agent["spec"]["updateStrategy"]["rollingUpdate"].get("maxSurge") == surge


def test_one_replica_gets_no_disruption_budget(helm: Path) -> None:
    assert [o for o in rendered(helm, "--set", "controller.replicas=1") if o["kind"] == "PodDisruptionBudget"] == []


@pytest.fixture
def installed(helm: Path, cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., HTTPKubeClient]]:
    """The chart in a namespace of its own; gives clients with the rights of its service accounts."""
    for obj in cluster.kube.list(CLASSES)["items"]:
        cluster.kube.delete(CLASSES, obj)  # the chart brings them
    common = ["--namespace", cluster.namespace, "--kubeconfig", cluster.kubeconfig]
    run(helm, "install", RELEASE, str(CHART), *common, "--skip-crds")

    def client(account: str, node: dict[str, Any] | None = None) -> HTTPKubeClient:
        tokens = Resource("", "v1", f"serviceaccounts/{account}/token", namespaced=True)
        bound = {"boundObjectRef": {"apiVersion": "v1", "kind": "Node", **node}} if node else {}
        request = {"metadata": {"namespace": cluster.namespace}, "spec": {"expirationSeconds": 600, **bound}}
        token = cluster.kube.create(tokens, request)["status"]["token"]
        config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        path = tmp_path / f"{account}.kubeconfig"
        path.write_text(json.dumps(config))
        return HTTPKubeClient(str(path))

    yield client
    run(helm, "uninstall", RELEASE, *common)


def test_the_controller_does_its_work_with_the_rights_that_the_chart_gives(
    cluster: Cluster, installed: Callable[..., HTTPKubeClient]
) -> None:
    settings = ControllerSettings(
        cluster.namespace,
        "a",
        classes=ClassSettings(("nvidia",), CONTROLLER),
        lease_duration_s=60,
        renew_deadline_s=50,
        retry_s=0.3,
    )
    controller = Controller(installed(CONTROLLER), settings, CollectorRegistry())
    controller.start()
    try:
        wait_until(lambda: len(cluster.kube.list(CLASSES)["items"]) == 2)
        for obj in cluster.kube.list(CLASSES)["items"]:
            changed = {
                **obj,
                "spec": {"selectors": [{"cel": {"expression": f'device.driver == "x-{names.DRIVER_NAME}"'}}]},
            }
            cluster.kube.replace(CLASSES, changed)
            wait_until(partial(_is_stored, cluster, obj))
        cluster.add_node("rights", facts())
        wait_until(lambda: len(cluster.slices("rights")) == 1)
        first = cluster.slices("rights")[0]["metadata"]["uid"]
        cluster.kube.delete(SLICES, cluster.slices("rights")[0])
        wait_until(lambda: [s["metadata"]["uid"] for s in cluster.slices("rights")] not in ([], [first]))
        wrong = claim("typo", config={"kind": "VGPUConfig"})
        del wrong["metadata"]["uid"]
        cluster.create(CLAIMS, wrong)
        selection = kube_api.Selection(namespace=cluster.namespace, fields="reason=VGPUConfigInvalid")
        wait_until(lambda: cluster.kube.list(kube_api.EVENTS, selection)["items"])
    finally:
        controller.stop()
    wait_until(
        lambda: not cluster.kube.get(kube_api.LEASES, settings.lease.name, cluster.namespace)["spec"]["holderIdentity"]
    )


def test_the_controller_brings_the_crd_of_the_first_release_up_to_date_and_what_it_holds_stays(
    cluster: Cluster, installed: Callable[..., HTTPKubeClient]
) -> None:
    controller = installed(CONTROLLER)
    first = yaml.safe_load((Path(__file__).parent / "first-crd.yaml").read_text())
    wanted = nodeinventory.crd()
    name = wanted["metadata"]["name"]
    stored = cluster.kube.get(CRDS, name)
    cluster.kube.replace(CRDS, {**stored, "metadata": {**stored["metadata"], "annotations": {}}, "spec": first["spec"]})
    held_back = facts(offered=False)
    uid = cluster.add_node("upgraded", held_back)

    def up_to_date() -> bool:
        # New rights take effect after a moment.
        update_crd(controller)
        found = cluster.kube.get(CRDS, name)
        schemas = [entry["spec"]["versions"][0]["schema"] for entry in (found, wanted)]
        return bool(schemas[0] == schemas[1] and found["metadata"]["annotations"] == wanted["metadata"]["annotations"])

    wait_until(up_to_date)
    inventory = cluster.kube.get(kube_api.NODE_INVENTORIES, "upgraded")
    read = nodeinventory.NodeInventory.from_object(inventory).status
    assert read is not None
    assert (read.node_uid, [device.uuid for device in read.devices]) == (uid, [held_back.uuid])

    def states_all() -> bool:
        # A new schema is served after a moment.
        state_inventory(cluster.kube, "upgraded", status(held_back, node_uid=uid))
        inventory = cluster.kube.get(kube_api.NODE_INVENTORIES, "upgraded")
        return inventory["status"]["devices"][0].get("offered") is False

    wait_until(states_all)
    other = {**wanted, "metadata": {"name": "others.example.com"}}
    with pytest.raises(KubeError) as refused:
        controller.get(CRDS, "others.example.com")
    assert refused.value.status == 403
    with pytest.raises(KubeError) as refused:
        controller.create(CRDS, other)
    assert refused.value.status == 403


def test_an_agent_writes_the_inventory_of_its_own_node_only(
    cluster: Cluster, installed: Callable[..., HTTPKubeClient]
) -> None:
    uid = cluster.add_node("mine")
    cluster.add_node("other")
    agent = installed(AGENT, {"name": "mine", "uid": uid})
    stated = nodeinventory.to_object("mine", status(facts(), node_uid=uid))
    patch = {"status": stated["status"]}

    def refusal() -> str:
        # A new policy takes effect after a moment; until then it forbids nothing.
        try:
            agent.patch(kube_api.NODE_INVENTORIES, {"metadata": {"name": "other"}}, patch, "status")
        except KubeError as error:
            return str(error)
        return ""

    wait_until(refusal)
    expected = "a node agent may write the NodeInventory of its own node only: found other, expected mine"
    assert refusal().endswith(expected)
    agent.patch(kube_api.NODE_INVENTORIES, stated, patch, "status")
    with pytest.raises(KubeError) as refused:
        agent.list(SLICES)
    assert refused.value.status == 403
    with pytest.raises(KubeError) as refused:
        agent.list(CLAIMS)
    assert refused.value.status == 403
    of_no_node = installed(AGENT)
    with pytest.raises(KubeError, match="NodeInventory of its own node only"):
        of_no_node.create(kube_api.NODE_INVENTORIES, {**stated, "metadata": {"generateName": "any-"}})


def test_rendered_objects_are_accepted_by_the_api_server(helm: Path, cluster: Cluster) -> None:
    arguments = ["--namespace", cluster.namespace, "--kubeconfig", cluster.kubeconfig, "--skip-crds"]
    for obj in cluster.kube.list(CLASSES)["items"]:
        cluster.kube.delete(CLASSES, obj)
    text = run(helm, "install", "dry", str(CHART), *arguments, "--dry-run=server")
    assert "STATUS: pending-install" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted_by_the_api_server(api_server: LocalCluster, cluster: Cluster, path: Path) -> None:
    account = {"kind": "ServiceAccount", "metadata": {"name": "default"}}
    cluster.create(SERVICE_ACCOUNTS, account)
    applied = api_server.kubectl("apply", "--dry-run=server", "--namespace", cluster.namespace, "--filename", str(path))
    assert [line.endswith("created (server dry run)") for line in applied.strip().splitlines()] == [True, True]
