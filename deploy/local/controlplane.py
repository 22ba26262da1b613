"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as plain processes. Called by cluster.py."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.local import building, credentials, versions
from deploy.local.apiclient import ApiClient
from deploy.local.errors import StartError
from deploy.local.layout import Facts, Layout
from deploy.local.processes import Command, record_path, running, start

READY_TIMEOUT_S = 180.0
_ROOM_BYTES = 128 << 20
"""Less than that on the disk may be why a component ends: etcd alone makes files of 64 MiB."""
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
# The defaults (20 and 50 requests a second) would be what any measurement of claims measures.
CLIENT_LIMITS = ("--kube-api-qps=500", "--kube-api-burst=1000")
# What pods ask of the API server, and whether they may: shows rights that are missing or too many.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


def start_control_plane(layout: Layout, facts: Facts, *, dies_with_caller: bool) -> ApiClient:
    """Start what of the control plane does not run, wait until the API server is ready, return a client of it."""
    arguments = {
        "etcd": _etcd(layout, facts),
        "kube-apiserver": _api_server(layout, facts),
        "kube-controller-manager": _controller_manager(layout, facts),
        "kube-scheduler": _scheduler(layout, facts),
    }
    _audit_policy(layout).write_text(json.dumps(AUDIT_POLICY))
    # The API server waits for etcd by itself; the other two would give up without an API server.
    for component in COMPONENTS[:2]:
        _ensure(layout, facts, component, arguments[component], dies_with_caller)
    client = client_of(layout, facts)
    _wait_until_ready(layout, client)
    for component in COMPONENTS[2:]:
        _ensure(layout, facts, component, arguments[component], dies_with_caller)
    return client


def client_of(layout: Layout, facts: Facts) -> ApiClient:
    """Return a client of the cluster's API server, as administrator."""
    addresses = facts.addresses
    token = credentials.token(layout, credentials.ADMIN)
    return ApiClient(addresses.host, addresses.api_port, layout.pki / "ca.crt", token)


def log_tail(log: Path, lines: int = 15) -> str:
    """Return the end of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def _ensure(layout: Layout, facts: Facts, component: str, arguments: Sequence[str], dies_with_caller: bool) -> None:
    if running(record_path(layout.state, component)):
        return
    programs = building.kubernetes(facts.release(component).kubernetes)
    command = Command(
        name=component,
        argv=[str(programs / component), *arguments],
        directory=layout.state,
        environment={"PATH": os.defpath},
        dies_with_caller=dies_with_caller,
    )
    start(command)


def _wait_until_ready(layout: Layout, client: ApiClient) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not client.ready():
        for component in COMPONENTS[:2]:
            if not running(record_path(layout.state, component)):
                tail = log_tail(layout.state / "logs" / f"{component}.log")
                raise StartError(f"{component} ended while it started{_lack_of_room(layout)}:\n{tail}")
        if time.monotonic() > deadline:
            tail = log_tail(layout.state / "logs" / "kube-apiserver.log")
            raise StartError(f"kube-apiserver was not ready within {READY_TIMEOUT_S:.0f} s:\n{tail}")
        time.sleep(0.05)  # /readyz cannot be awaited


def _lack_of_room(layout: Layout) -> str:
    """Return what ends components that write, and that the end of their logs seldom says; empty: it was not that."""
    free_bytes = shutil.disk_usage(layout.state).free
    return f" ({layout.state} has {free_bytes >> 20} MiB left)" if free_bytes < _ROOM_BYTES else ""


def _etcd(layout: Layout, facts: Facts) -> list[str]:
    addresses, pki = facts.addresses, layout.pki
    client = f"https://{addresses.host}:{addresses.etcd_port}"
    peer = f"http://{addresses.host}:{addresses.etcd_peer_port}"
    return [
        "--name=etcd",
        f"--data-dir={layout.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=etcd={peer}",
        f"--cert-file={pki / 'server.crt'}",
        f"--key-file={pki / 'server.key'}",
        f"--trusted-ca-file={pki / 'ca.crt'}",
        "--client-cert-auth",
        "--unsafe-no-fsync",  # a cluster that does not outlive the machine has nothing to lose at a power cut
        "--log-level=warn",
    ]


def _api_server(layout: Layout, facts: Facts) -> list[str]:
    addresses, pki = facts.addresses, layout.pki
    arguments = [
        f"--etcd-servers=https://{addresses.host}:{addresses.etcd_port}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'client.crt'}",
        f"--etcd-keyfile={pki / 'client.key'}",
        f"--bind-address={addresses.host}",
        f"--secure-port={addresses.api_port}",
        f"--advertise-address={addresses.host}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-account-key-file={pki / 'service-account.key'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={addresses.service_range}",
        f"--kubelet-client-certificate={pki / 'client.crt'}",
        f"--kubelet-client-key={pki / 'client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged",
        "--profiling=false",
        f"--audit-policy-file={_audit_policy(layout)}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-maxsize=50",  # MB
        "--audit-log-maxbackup=1",
        f"--runtime-config={_runtime_config(facts)}",
        *_gates(facts, "kube-apiserver"),
    ]
    if addresses.subnet is None:
        # The loopback address is no valid endpoint of the service `kubernetes`; without pods nobody needs it.
        arguments.append("--endpoint-reconciler-type=none")
    return arguments


def _audit_policy(layout: Layout) -> Path:
    return layout.state / "audit-policy.json"


def _controller_manager(layout: Layout, facts: Facts) -> list[str]:
    kubeconfig = _kubeconfig(layout, facts, credentials.CONTROLLER_MANAGER)
    return [
        f"--kubeconfig={kubeconfig}",
        f"--bind-address={facts.addresses.host}",
        f"--secure-port={facts.addresses.controller_manager_port}",
        f"--service-account-private-key-file={layout.pki / 'service-account.key'}",
        f"--root-ca-file={layout.pki / 'ca.crt'}",
        "--leader-elect=false",
        "--profiling=false",
        *CLIENT_LIMITS,
        *_gates(facts, "kube-controller-manager"),
    ]


def _scheduler(layout: Layout, facts: Facts) -> list[str]:
    kubeconfig = _kubeconfig(layout, facts, credentials.SCHEDULER)
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={facts.addresses.host}",
        f"--secure-port={facts.addresses.scheduler_port}",
        "--leader-elect=false",
        "--profiling=false",
        *CLIENT_LIMITS,
        *_gates(facts, "kube-scheduler"),
    ]


def _runtime_config(facts: Facts) -> str:
    """Return what the API server serves: also what components of another version ask for, until they are upgraded."""
    served = {release.kubernetes: release.feature_gates for release in facts.others.values()}
    served |= {facts.kubernetes: facts.feature_gates}
    asked = [versions.runtime_config(version, gates).split(",") for version, gates in served.items()]
    return ",".join(dict.fromkeys(part for parts in asked for part in parts))


def _kubeconfig(layout: Layout, facts: Facts, user: str) -> Path:
    return credentials.write_kubeconfig(layout.pki / f"{user}.kubeconfig", layout, facts, user)


def _gates(facts: Facts, component: str) -> list[str]:
    release = facts.release(component)
    gates = versions.feature_gates(release.kubernetes, release.feature_gates)
    return [f"--feature-gates={versions.format_gates(gates)}"] if gates else []
