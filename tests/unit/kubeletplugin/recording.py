"""Records what a release leaves on a node: `python -m tests.unit.kubeletplugin.recording NAME`.

Writes `tests/unit/kubeletplugin/releases/NAME`: the files of an agent of this very code that has prepared some claims,
and `manifest.json` with what it answered and enforced. `test_releases.py` starts the agent of today on each of them.

With each release: record it under its version, once, and never again; remove those that are older than the two releases
before it. `python -m tests.unit.kubeletplugin.recording --next` makes anew what a release to come might leave.
"""

import argparse
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client import CollectorRegistry

from api import kube, names
from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.faultfiles import boot_id
from kubeletplugin.hardware.faults import Faults
from kubeletplugin.hardware.seendevices import SeenDevices
from kubeletplugin.monitoring.contextsizes import ContextSizes
from libvgpu.layout import layout
from libvgpu.shares import read_books, read_limits
from tests.unit.kubeletplugin import builders
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, Ref

RELEASES = Path(__file__).parent / "releases"
ROOT = "@ROOT@"
"""In the files, where the state and CDI folders lie."""
BOOT_ID = "b007b007-0000-4000-8000-000000000000"
"""In the files, of the boot in which they were written."""
NEXT = "next"
NEXT_AT = 2047
"""Where a release to come has a field in the limits: far behind all that ours may have one day."""
CONTEXT_BYTES = 300 << 20
A, B, C = (builders.gpu(number) for number in range(3))
FAULTY = C.uuid


def claims() -> list[dict[str, Any]]:
    """Return a claim of each kind, in the order of their UIDs."""
    return [
        builders.claim_object(
            "fixed", [builders.result(A, "3Gi", "30")], [builders.parameters(memory="2Gi", priority=5, overuse="Kill")]
        ),
        builders.claim_object(
            "burst",
            [builders.result(A, "1Gi", "10", request="a"), builders.result(B, "2Gi", "20", request="b")],
            [builders.parameters(policy="Burst")],
        ),
        builders.claim_object("idle", [builders.result(A, "1Gi", "0")]),
        builders.claim_object("observer", [builders.result(A, None, adminAccess=True)]),
    ]


def add_claims(client: FakeKube) -> list[Ref]:
    """Store the claims under UIDs that are always the same."""
    refs = []
    for number, claim in enumerate(claims()):
        claim["status"]["reservedFor"] = [{"resource": "pods", "name": f"p{number}", "uid": f"pod-{number}"}]
        with mock.patch("uuid.uuid4", return_value=uuid.UUID(int=(0x4000_8000 << 64) + number + 1)):
            stored = client.create(builders.CLAIMS, claim)
        refs.append(Ref(stored["metadata"]["uid"], "default", stored["metadata"]["name"]))
    return refs


def record(folder: Path) -> None:
    """Let an agent work on a node of its own, and keep its files."""
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as name:
        root = Path(name)
        client = FakeKube()
        builders.add_node(client)
        refs = add_claims(client)
        backend = FakeDiscovery(builders.discovery(A, B, C))
        agent = NodeAgent(client, builders.settings(root), backend, CollectorRegistry())
        kubelet = FakeKubelet(root / "kubelet")
        agent.start()
        try:
            kubelet.register()
            answers = kubelet.prepare(*refs)
            _use(root / "state/shares")
            _offer(client, backend, root / "state/offers.json")
        finally:
            kubelet.close()
            agent.stop()
        Faults(file=root / "state/faults.json").tell_xid(FAULTY, 79)
        ContextSizes(root / "state/contexts.json")._learn(A.uuid.lower(), CONTEXT_BYTES)
        SeenDevices(root / "state/seen.json").note([A, B, C], {A.uuid: [0, 1]})
        manifest = {
            "answers": {uid: [list(device.cdi_device_ids) for device in answers[uid]] for uid in answers},
            "limits": {one.name: _plain(read_limits(one)) for one in _shares(root / "state/shares")},
            "books": {one.name: _plain(read_books(one)) for one in _shares(root / "state/shares")},
        }
        _keep(root, folder, manifest)


def restore(folder: Path, root: Path) -> dict[str, Any]:
    """Put the files of a release under a folder as they were; return its manifest."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for path, facts in manifest["files"].items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        content = (folder / path).read_bytes().replace(ROOT.encode(), str(root).encode())
        target.write_bytes(content.ljust(facts["bytes"], b"\0") if facts["padded"] else content)
        target.chmod(facts["mode"])
    return manifest


def _keep(root: Path, folder: Path, manifest: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    files: dict[str, Any] = {}
    for path in sorted(path for part in ("state", "cdi") for path in (root / part).rglob("*") if path.is_file()):
        content = path.read_bytes()
        binary = path.name in {names.LIMITS_FILE, names.BOOKS_FILE, "checkpoint.lock"}
        kept = folder / path.relative_to(root)
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Without the zeros at their end: books are a quarter of a megabyte of them.
        kept.write_bytes(content.rstrip(b"\0") if binary else _neutral(content, root))
        facts = {"bytes": len(content), "padded": binary, "mode": path.stat().st_mode & 0o777}
        files[str(path.relative_to(root))] = facts
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}, indent=1) + "\n")


def _neutral(content: bytes, root: Path) -> bytes:
    return content.replace(str(root).encode(), ROOT.encode()).replace(boot_id().encode(), BOOT_ID.encode())


def _shares(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_dir())


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(field, "value", field) for name, field in asdict(value).items()}


def _use(shares: Path) -> None:
    """Write into the books what a tenant's library has counted."""
    for number, share in enumerate(_shares(shares)):
        with (share / names.BOOKS_FILE).open("r+b") as file:
            raw = bytearray(file.read())
            books = layout().books(raw)
            books.peak_bytes = (number + 1) << 20
            books.ended_launches = number + 7
            file.seek(0)
            file.write(raw)


def _offer(client: FakeKube, backend: FakeDiscovery, offers_file: Path) -> None:
    """Have the controller offer more of a GPU than it has."""
    offers = [{"device": B.name, "memoryBytes": 15 << 30, "cores": 150}]
    body = {"metadata": {"name": builders.NODE}}
    client.patch(kube.NODE_INVENTORIES, body, {"status": {"offers": offers}}, "status")
    backend.happen()
    while not offers_file.exists():
        os.sched_yield()


def _age(folder: Path) -> None:
    """Turn what this release leaves into what one to come might: fields, files and values that nobody knows yet."""
    with tempfile.TemporaryDirectory(prefix="vgpu-", dir="/tmp") as temporary:
        root = Path(temporary)
        manifest = restore(folder, root)
        for path in [*(root / "state/checkpoint").glob("*.json"), *(root / "state/shares").glob("*/claim.json")]:
            fields = json.loads(path.read_text())
            fields["version"], fields["tier"] = 2, "gold"
            for device in fields["devices"]:
                device["lane"] = 3
                if "limits" in device:
                    device["limits"]["bandwidthPercent"] = 40
            path.write_text(json.dumps(fields))
        for share in _shares(root / "state/shares"):
            with (share / names.LIMITS_FILE).open("r+b") as file:
                raw = bytearray(file.read())
                view = layout().limits(raw)
                view.size, view.flags, raw[NEXT_AT] = NEXT_AT + 1, view.flags | 1 << 20, 40
                file.seek(0)
                file.write(raw)
            (share / "bandwidth").write_text("40\n")
        for name, change in _AGED.items():
            content = json.loads((root / "state" / name).read_text())
            change(content)
            (root / "state" / name).write_text(json.dumps(content))
        (root / "state/topology.json").write_text('{"version": 2}')
        for spec in (root / "cdi").glob("*claim*.json"):
            content = json.loads(spec.read_text()) | {"cdiVersion": "1.1.0", "annotations": {"lane": "3"}}
            spec.write_text(json.dumps(content))
        _keep(root, folder, {key: value for key, value in manifest.items() if key != "files"})


def _age_faults(content: dict[str, Any]) -> None:
    content["version"] = 2
    content["faults"][FAULTY]["severity"] = "fatal"
    clearing = {"uuid": B.uuid, "xid": 48, "by": "alice", "reason": "seated again", "at": "2027-01-01T00:00:00Z"}
    content["cleared"] = [clearing | {"ticket": "4711"}]


def _age_offers(content: list[dict[str, Any]]) -> None:
    content[0]["bandwidth"] = 90


def _age_seen(content: dict[str, Any]) -> None:
    content["version"] = 2
    content["devices"][0]["lanes"] = 16


_AGED: dict[str, Any] = {"faults.json": _age_faults, "offers.json": _age_offers, "seen.json": _age_seen}


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description="Record what this release leaves on a node.")
    parser.add_argument("name", nargs="?", help="version of the release")
    parser.add_argument("--next", action="store_true", help="make anew what a release to come might leave")
    options = parser.parse_args()
    if options.next == bool(options.name):
        parser.error("found a name and --next, or none of them, expected one")
    record(RELEASES / (options.name or NEXT))
    if options.next:
        _age(RELEASES / NEXT)


if __name__ == "__main__":
    main()
