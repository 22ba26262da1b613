"""What other releases left on a node, taken up by the agent of today: the two before this one, and one to come.

The files are stored under `releases`, as those releases wrote them; `recording.py` says how the next one adds its own.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.kubefake import FakeKube
from api.names import ANNOTATION_LIMITS
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware import faultfiles
from kubeletplugin.hardware.discovery import FakeDiscovery
from kubeletplugin.hardware.faultfiles import FAULTS_FILE
from kubeletplugin.hardware.faults import Faults
from kubeletplugin.hardware.inventory import OFFERS_FILE, InventoryWriter
from kubeletplugin.hardware.seendevices import SEEN_FILE, SeenDevices
from kubeletplugin.monitoring.contextsizes import ContextSizes
from libvgpu.layout import layout
from libvgpu.shares import read_books, read_limits
from tests.unit.kubeletplugin import recording
from tests.unit.kubeletplugin.builders import CLAIMS, NODE, discovery
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, Ref
from tests.unit.kubeletplugin.recording import CONTEXT_BYTES, FAULTY, NEXT_AT, RELEASES, A, B, C

NAMES = sorted(path.name for path in RELEASES.iterdir())


@dataclass
class Left:
    """What a release left on a node."""

    name: str
    root: Path
    manifest: dict[str, Any]
    claims: list[Ref]

    def files(self, *patterns: str) -> dict[str, tuple[int, bytes]]:
        """Return inode and content of files of the state folder: what a container has mounted is both."""
        paths = sorted(path for pattern in patterns for path in (self.root / "state").glob(pattern))
        return {path.relative_to(self.root).as_posix(): (path.stat().st_ino, path.read_bytes()) for path in paths}

    def records(self) -> dict[str, Any]:
        return {path.name: json.loads(path.read_text()) for path in (self.root / "state/checkpoint").glob("*.json")}

    def has(self, file: str) -> bool:
        return (self.root / "state" / file).exists()


@pytest.fixture
def backend() -> FakeDiscovery:
    return FakeDiscovery(discovery(A, B, C))


@pytest.fixture(params=NAMES)
def left(request: pytest.FixtureRequest, root: Path, client: FakeKube, monkeypatch: pytest.MonkeyPatch) -> Left:
    manifest = recording.restore(RELEASES / request.param, root)
    (root / "boot_id").write_text(recording.BOOT_ID + "\n")
    monkeypatch.setattr(faultfiles, "BOOT_ID_FILE", root / "boot_id")
    return Left(request.param, root, manifest, recording.add_claims(client))


def take_up(start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left) -> dict[str, Any]:
    """Start the agent of today, and let the kubelet send all claims again."""
    # The API server of the test knows of no offers: the agent would forget those before or after the first claim comes.
    (left.root / "state" / OFFERS_FILE).unlink(missing_ok=True)
    start_agent(steering_interval_s=3600.0)  # grants follow what the shares do, and are no part of what was left
    kubelet.register()
    answers = kubelet.prepare(*left.claims)
    return {uid: [list(device.cdi_device_ids) for device in devices] for uid, devices in answers.items()}


def test_claims_keep_their_cdi_ids_and_running_shares_their_files(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = left.files("shares/*/limits", "shares/*/books", "lib/*")

    with caplog.at_level(logging.WARNING):
        answers = take_up(start_agent, kubelet, left)

    assert answers == left.manifest["answers"]
    assert left.files("shares/*/limits", "shares/*/books", "lib/*").items() >= mounted.items()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_limits_and_books_say_what_they_said(left: Left) -> None:
    for share, expected in left.manifest["limits"].items():
        limits = recording._plain(read_limits(left.root / "state/shares" / share))
        assert {key: limits[key] for key in expected} == expected
    for share, expected in left.manifest["books"].items():
        books = recording._plain(read_books(left.root / "state/shares" / share))
        assert {key: books[key] for key in expected if key != "processes"} == {
            key: value for key, value in expected.items() if key != "processes"
        }


def test_each_share_has_a_cdi_spec_that_mounts_its_files(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left
) -> None:
    for spec in (left.root / "cdi").glob("*"):
        spec.unlink()  # the update came with a reboot

    take_up(start_agent, kubelet, left)

    specs = [json.loads(path.read_text()) for path in (left.root / "cdi").glob("*claim*")]
    mounts = [
        mount["hostPath"]
        for spec in specs
        for device in spec["devices"]
        for mount in device["containerEdits"]["mounts"]
        if mount["hostPath"].endswith("limits")
    ]
    assert sorted(Path(path).parent.name for path in mounts) == sorted(left.manifest["limits"])
    assert all(Path(path).is_file() for path in mounts)


def test_a_record_keeps_all_that_it_said(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left
) -> None:
    before = left.records()

    take_up(start_agent, kubelet, left)

    after = left.records()
    assert after.keys() == before.keys()
    for name, record in before.items():
        assert _keeps(after[name], record)


def _keeps(after: Any, before: Any) -> bool:
    """Return whether everything that was there is there; numbers of versions are what the writer knows."""
    if isinstance(before, dict):
        return all(key in after and (key == "version" or _keeps(after[key], value)) for key, value in before.items())
    if isinstance(before, list):
        return all(_keeps(new, old) for new, old in zip(after, before, strict=True))
    return bool(after == before)


def test_limits_keep_what_another_release_wrote_into_them_when_they_are_changed(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left, client: FakeKube
) -> None:
    take_up(start_agent, kubelet, left)
    before = [content for _, content in left.files("shares/*/limits").values()]

    client.patch(
        CLAIMS,
        {"metadata": {"namespace": "default", "name": "fixed"}},
        {"metadata": {"annotations": {ANNOTATION_LIMITS: '{"suspended": true}'}}},
    )
    kubelet.prepare(*left.claims)

    after = [content for _, content in left.files("shares/*/limits").values()]
    suspended = layout().constants.VGPU_SUSPENDED
    assert [bool(layout().limits(content).flags & suspended) for content in after] == [True, False, False, False]
    for old, new in zip(before, after, strict=True):
        was, now = layout().limits(old), layout().limits(new)
        assert (now.flags & ~suspended, new[NEXT_AT]) == (was.flags, old[NEXT_AT])
        assert now.size >= was.size


def test_faults_contexts_offers_and_what_was_seen_are_known_on(left: Left, client: FakeKube) -> None:
    state = left.root / "state"
    assert Faults(file=state / FAULTS_FILE).problem(FAULTY) == "Xid 79 was reported"
    if left.has("contexts.json"):
        assert ContextSizes(state / "contexts.json").bytes_of(A.uuid) == CONTEXT_BYTES
    if left.has(OFFERS_FILE):
        writer = InventoryWriter(client, NODE, "vgpu.dra-driver.io", "1.0.0", state / OFFERS_FILE)
        assert writer.offers[B.name].memory_bytes == 15 << 30
    if left.has(SEEN_FILE):
        seen = SeenDevices(state / SEEN_FILE)
        assert set(seen.devices) == {A.uuid, B.uuid, C.uuid}
        assert seen.links(A.uuid) == {0, 1}


def test_faults_that_a_newer_release_knows_more_of_are_not_lost_when_another_comes(left: Left) -> None:
    file = left.root / "state" / FAULTS_FILE
    before = json.loads(file.read_text())

    Faults(file=file).tell_xid(A.uuid, 48)

    after = json.loads(file.read_text())
    after["faults"].pop(A.uuid)
    for one in (*after["faults"].values(), *before["faults"].values()):
        one.pop("at")  # releases that knew no clock since the boot wrote the time of the day
    assert _keeps(after, before)


def test_all_of_it_can_be_undone(start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, left: Left) -> None:
    take_up(start_agent, kubelet, left)

    kubelet.unprepare(*left.claims)

    assert left.records() == {}
    assert left.files("shares/**/*") == {}
    assert [path.name for path in (left.root / "cdi").glob("*claim*")] == []
