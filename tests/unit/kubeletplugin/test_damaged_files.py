"""Files of the agent's state that an accident of the disk has damaged: none keeps an agent from its work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from api import names
from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from libvgpu.shares import read_limits
from tests.unit.kubeletplugin.builders import CLAIMS, GIB, add_claim, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet

_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _content: b"",
    "zeros": lambda content: bytes(len(content)),
    "half": lambda content: content[: len(content) // 2],
    "ones": lambda content: b"\xff" * len(content),
}
_NAMED = ("driver",)
"""What says whose state it is: of another driver it is, if it says anything."""
_OPTIONAL = ("offers.json", "faults.json", "seen.json", "contexts.json", "boot")


@pytest.mark.parametrize("damage", _DAMAGES)
def test_an_agent_whose_files_are_all_damaged_starts_and_serves_its_claims(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path, damage: str
) -> None:
    agent = start_agent()
    kubelet.register()
    claim = add_claim(client, "train", result(gpu(0)))
    answered = kubelet.prepare(claim)
    agent.stop()
    state = root / "state"
    for name in _OPTIONAL:
        (state / name).write_text('{"version": 1, "devices": []}')
    for path in [path for path in state.rglob("*") if path.is_file() and path.name != "libvgpu.so"]:
        if path.name not in _NAMED or damage in {"empty", "zeros"}:
            path.write_bytes(_DAMAGES[damage](path.read_bytes()))

    start_agent()
    kubelet.restart()

    assert kubelet.prepare(claim) == answered
    assert read_limits(state / "shares" / f"{claim.uid}-0").memory_bytes == 2 * GIB
    assert kubelet.unprepare(claim) == {claim.uid: ""}
    assert [path for path in root.rglob("*") if claim.uid in path.name and path.suffix != ".damaged"] == []


def test_changes_of_a_share_that_are_damaged_keep_no_annotated_claim_from_its_pod(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    claim = add_claim(client, "train", result(gpu(0)))
    annotation = {"metadata": {"annotations": {names.ANNOTATION_LIMITS: '{"memory": "1Gi"}'}}}
    client.patch(CLAIMS, {"metadata": {"namespace": "default", "name": "train"}}, annotation)
    served.prepare(claim)
    share = root / "state" / "shares" / f"{claim.uid}-0"
    (share / "adjustments").write_bytes(b"\0" * 40)

    served.prepare(claim)

    assert read_limits(share).memory_bytes == GIB
    assert json.loads((share / "adjustments").read_text()) == {"claim": {"memory": GIB}}


@pytest.mark.parametrize("folder", ["shares", "checkpoint"])
def test_a_folder_that_somebody_removes_under_an_agent_holds_up_no_claim(
    served: FakeKubelet, client: FakeKube, root: Path, folder: str
) -> None:
    claims = [add_claim(client, name, result(gpu(0), "1Gi")) for name in ("first", "second", "third")]
    served.prepare(claims[0])
    served.prepare(claims[1])
    shutil.rmtree(root / "state" / folder)

    assert served.unprepare(claims[0]) == {claims[0].uid: ""}
    served.prepare(claims[2])

    assert served.unprepare(*claims[1:]) == {claim.uid: "" for claim in claims[1:]}
    assert [path for path in root.rglob("*") if any(claim.uid in path.name for claim in claims)] == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_somebody_put_into_the_place_of_a_share_is_undone_with_its_claim(
    served: FakeKubelet, client: FakeKube, root: Path, kind: str
) -> None:
    claim = add_claim(client, "train", result(gpu(0)))
    served.prepare(claim)
    share, kept = root / "state" / "shares" / f"{claim.uid}-0", root / "of-others"
    shutil.rmtree(share)
    kept.mkdir()
    (kept / "file").touch()
    if kind == "link":
        share.symlink_to(kept)
    else:
        share.touch()

    assert served.unprepare(claim) == {claim.uid: ""}

    assert not share.is_symlink()
    assert not share.exists()
    assert (kept / "file").exists()
