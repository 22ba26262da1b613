"""Certificates, tokens and kubeconfigs of one cluster. Called by controlplane.py and nodes.py.

Servers and the API server's own connections use certificates, made by the `pki` component of our binary (Go can make
them without any further package); clients use tokens, which the API server reads from a file.
"""

import csv
import json
import secrets
import subprocess
from pathlib import Path

from deploy.local.errors import StartError
from deploy.local.layout import Facts, Layout

ADMIN = "admin"
CONTROLLER_MANAGER = "controller-manager"
SCHEDULER = "scheduler"


def create(layout: Layout, facts: Facts, programs: Path) -> None:
    """Make what is not there yet: certificates, a token for each component, the administrator's kubeconfig."""
    if not (layout.pki / "complete").exists():
        layout.pki.mkdir(parents=True, exist_ok=True)
        layout.pki.chmod(0o700)
        _certificates(layout, facts, programs)
        _tokens(layout, facts)
        (layout.pki / "complete").touch()
    write_kubeconfig(layout.kubeconfig, layout, facts, ADMIN)


def token(layout: Layout, user: str) -> str:
    """Return the token of one of the users made here: ADMIN, CONTROLLER_MANAGER, SCHEDULER or a node's name."""
    with (layout.pki / "tokens.csv").open(newline="") as tokens:
        for row in csv.reader(tokens):
            if row[2] == user:
                return row[0]
    raise KeyError(user)


def write_kubeconfig(path: Path, layout: Layout, facts: Facts, user: str) -> Path:
    """Write the kubeconfig of a user, which verifies the server; return its path."""
    cluster = {
        "server": f"https://{facts.addresses.host}:{facts.addresses.api_port}",
        "certificate-authority": str(layout.pki / "ca.crt"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": layout.name, "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token(layout, user)}}],
        "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": user}}],
        "current-context": layout.name,
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return path


def _certificates(layout: Layout, facts: Facts, programs: Path) -> None:
    addresses = facts.addresses
    names = ["localhost", "127.0.0.1", addresses.host, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += ["kubernetes.default.svc.cluster.local"]
    names += [addresses.node(index) for index in range(facts.nodes) if addresses.subnet is not None]
    names += [layout.node(index).name for index in range(facts.nodes)]
    command = [str(programs / "pki"), "-dir", str(layout.pki), "-names", ",".join(dict.fromkeys(names))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"certificates could not be made: {done.stderr.strip()}")


def _tokens(layout: Layout, facts: Facts) -> None:
    # The groups are those that Kubernetes' own roles are bound to.
    users = [
        (ADMIN, ADMIN, "system:masters"),
        # Its controllers have a role each in a real cluster, through tokens that they fetch one by one: too slow here.
        ("system:kube-controller-manager", CONTROLLER_MANAGER, "system:masters"),
        ("system:kube-scheduler", SCHEDULER, ""),  # the role that comes with Kubernetes is bound to this name
    ]
    for index in range(facts.nodes):
        name = layout.node(index).name
        users.append((f"system:node:{name}", name, "system:nodes"))
    path = layout.pki / "tokens.csv"
    path.touch(mode=0o600)
    with path.open("w", newline="") as tokens:
        csv.writer(tokens).writerows([secrets.token_urlsafe(32), user, uid, group] for user, uid, group in users)
