"""The agent as the kubelet meets it: over its sockets, from claim to files."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api import kube, names
from api.errors import StateError
from api.kubefake import FakeKube
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.discovery import FakeDiscovery
from libvgpu.shares import Limits, Policy, read_books, read_limits
from tests.unit.kubeletplugin import fakekubelet
from tests.unit.kubeletplugin.builders import GIB, NODE, add_claim, can_connect, claim_object, gpu, hold_gets, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError, Ref

A, B = gpu(0), gpu(1)


def limits_of(root: Path, claim: Ref, index: int = 0) -> Limits:
    return read_limits(root / "state" / "shares" / f"{claim.uid}-{index}")


def files_of(root: Path, claim: Ref) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if claim.uid in path.name)


def test_a_claim_gets_its_limits_a_cdi_spec_and_two_cdi_ids(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    claim = add_claim(client, "train", result(A))

    (device,) = served.prepare(claim)[claim.uid]

    assert list(device.request_names) == ["gpu"]
    assert (device.pool_name, device.device_name, device.share_id) == (NODE, A.name, "share-gpu")
    assert list(device.cdi_device_ids) == [
        f"vgpu.dra-driver.io/gpu={A.name}",
        f"vgpu.dra-driver.io/claim={claim.uid}-0",
    ]
    assert limits_of(root, claim) == Limits(f"{claim.uid}-0", A.uuid, 2 * GIB, 25, 25, Policy.FIXED)
    assert read_books(root / "state" / "shares" / f"{claim.uid}-0").used_bytes == 0
    spec = json.loads((root / "cdi" / f"vgpu.dra-driver.io-claim_{claim.uid}.json").read_text())
    assert [device["name"] for device in spec["devices"]] == [f"{claim.uid}-0"]


def test_a_claim_for_a_slot_is_limited_to_it_and_answered_under_the_slots_name(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    slots = [{**result(A, memory=None, request=f"r{n}"), "device": f"{A.name}-slot-1024m-10c-{n}"} for n in range(2)]
    claim = add_claim(client, "train", *slots)

    answered = served.prepare(claim)[claim.uid]

    assert [device.device_name for device in answered] == [slot["device"] for slot in slots]
    assert [list(device.cdi_device_ids) for device in answered] == [
        [f"vgpu.dra-driver.io/gpu={A.name}", f"vgpu.dra-driver.io/claim={claim.uid}-{n}"] for n in range(2)
    ]
    assert limits_of(root, claim) == Limits(f"{claim.uid}-0", A.uuid, GIB, 10, 10, Policy.FIXED)


def test_a_kubelet_of_v1beta1_is_served_on_the_same_socket(
    start_agent: Callable[..., NodeAgent], client: FakeKube, root: Path
) -> None:
    start_agent()
    kubelet = FakeKubelet(root / "kubelet", dra_versions=("v1beta1.DRAPlugin",))
    kubelet.register()
    claim = add_claim(client, "train", result(A))

    (device,) = kubelet.prepare(claim)[claim.uid]
    kubelet.close()

    assert list(device.cdi_device_ids)[1] == f"vgpu.dra-driver.io/claim={claim.uid}-0"


def test_the_registration_says_what_is_served_where(served: FakeKubelet, root: Path) -> None:
    assert served.info.type == "DRAPlugin"
    assert served.info.name == names.DRIVER_NAME
    assert served.info.endpoint == str(root / "kubelet" / "plugins" / names.DRIVER_NAME / "dra.sock")
    assert list(served.info.supported_versions) == [
        "v1.DRAPlugin",
        "v1beta1.DRAPlugin",
        "v1.DRAResourceHealth",
        "v1alpha1.DRAResourceHealth",
    ]


def test_an_agent_is_ready_once_the_kubelet_has_registered_it(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet
) -> None:
    agent = start_agent()
    assert agent.ready() == "the kubelet has not registered the plugin yet"

    kubelet.register()

    assert agent.ready() == ""
    assert agent.alive() == ""


def test_a_refusal_of_the_kubelet_is_told(start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet) -> None:
    agent = start_agent()

    kubelet.register(refusal="name is taken")

    assert agent.ready() == "the kubelet refused the plugin: name is taken"


def test_an_empty_call_has_an_empty_answer(served: FakeKubelet) -> None:
    assert served.prepare() == {}
    assert served.unprepare() == {}


def test_other_users_of_the_node_cannot_reach_the_books(served: FakeKubelet, root: Path) -> None:
    assert (root / "state" / "shares").stat().st_mode & 0o777 == 0o700


def test_a_claim_prepared_twice_gets_the_same_ids_and_files(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    claim = add_claim(client, "train", result(A))

    first = served.prepare(claim)
    files = {path: path.stat().st_ino for path in (root / "state").rglob("*")}
    second = served.prepare(claim)

    assert second == first
    assert {path: path.stat().st_ino for path in (root / "state").rglob("*")} == files


def test_a_cdi_spec_that_a_reboot_took_is_written_again(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    claim = add_claim(client, "train", result(A))
    first = served.prepare(claim)
    spec = root / "cdi" / f"vgpu.dra-driver.io-claim_{claim.uid}.json"
    content = spec.read_bytes()
    for path in spec.parent.iterdir():
        path.unlink()
    spec.parent.rmdir()

    assert served.prepare(claim) == first
    assert spec.read_bytes() == content


def test_unprepare_leaves_nothing_of_the_claim(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    claim = add_claim(client, "train", result(A))
    served.prepare(claim)
    client.delete(kube.claims("v1"), {"metadata": {"namespace": "default", "name": "train"}})

    assert served.unprepare(claim) == {claim.uid: ""}
    assert files_of(root, claim) == []


def test_unprepare_of_an_unknown_claim_and_a_second_unprepare_succeed(served: FakeKubelet, client: FakeKube) -> None:
    claim = add_claim(client, "train", result(A))
    served.prepare(claim)
    served.unprepare(claim)

    assert served.unprepare(claim, Ref("never-seen"), Ref("../../etc")) == {
        claim.uid: "",
        "never-seen": "",
        "../../etc": "",
    }


def test_one_bad_claim_does_not_fail_the_others_of_a_call(served: FakeKubelet, client: FakeKube, root: Path) -> None:
    good = add_claim(client, "good", result(A))
    foreign = add_claim(client, "foreign", result(A, driver="gpu.example.com"))
    gone = Ref("11111111-2222-3333-4444-555555555555", "default", "gone")

    answers = served.call_prepare([good, foreign, gone, Ref("../evil")])

    assert answers[good.uid].error == ""
    assert answers[foreign.uid].error == (
        "ResourceClaim default/foreign: found devices of driver gpu.example.com, expected devices of driver "
        "vgpu.dra-driver.io"
    )
    assert answers[gone.uid].error == (
        "ResourceClaim default/gone: found none, expected the one with uid 11111111-2222-3333-4444-555555555555"
    )
    assert answers["../evil"].error == "uid '../evil': expected the UID of a ResourceClaim"
    assert files_of(root, foreign) == []


def test_a_hundred_claims_of_one_name_in_a_call_have_each_the_share_of_their_own_namespace(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    claims = []
    for number in range(1, 101):
        claim = claim_object("train", [result(A, f"{number}Mi", "0")])
        claim["metadata"]["namespace"] = f"team-{number}"
        uid = client.create(kube.claims("v1"), claim)["metadata"]["uid"]
        claims.append(Ref(uid, f"team-{number}", "train"))

    answered = served.prepare(*claims, claims[0])

    assert set(answered) == {claim.uid for claim in claims}
    assert [limits_of(root, claim).memory_bytes >> 20 for claim in claims] == list(range(1, 101))
    assert served.unprepare(*claims) == {claim.uid: "" for claim in claims}
    assert list((root / "state" / "shares").iterdir()) == []


def test_a_claim_that_was_created_again_under_its_name_is_not_mistaken(served: FakeKubelet, client: FakeKube) -> None:
    claim = add_claim(client, "train", result(A))

    with pytest.raises(PrepareError) as caught:
        served.prepare(Ref("the-former-one", "default", "train"))

    assert str(caught.value) == (
        f"ResourceClaim default/train: found uid {claim.uid}, expected the-former-one: it was deleted and created again"
    )


def test_two_containers_that_share_a_claim_get_the_same_share(served: FakeKubelet, client: FakeKube) -> None:
    # Two pods (or containers) of one claim are two calls with one uid: same ids, same books.
    claim = add_claim(client, "shared", result(A))

    assert served.prepare(claim) == served.prepare(claim)


def test_a_container_that_names_a_request_with_alternatives_gets_the_one_that_was_allocated(
    served: FakeKubelet, client: FakeKube
) -> None:
    # The kubelet compares with the name that a container gives, which never has the alternative in it.
    claim = add_claim(client, "either", result(A, request="gpu/small"))

    (device,) = served.prepare(claim)[claim.uid]

    assert list(device.request_names) == ["gpu"]


def test_two_shares_of_one_gpu_in_one_claim_have_each_their_own_limits(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    claim = add_claim(client, "pair", result(A, "2Gi", "20", request="first"), result(A, "3Gi", "30", request="second"))

    first, second = served.prepare(claim)[claim.uid]

    assert [list(device.cdi_device_ids)[1] for device in (first, second)] == [
        f"vgpu.dra-driver.io/claim={claim.uid}-0",
        f"vgpu.dra-driver.io/claim={claim.uid}-1",
    ]
    assert limits_of(root, claim, 0).memory_bytes == 2 * GIB
    assert limits_of(root, claim, 1).memory_bytes == 3 * GIB


def test_a_device_promised_twice_is_refused_with_both_claims_named(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    first = add_claim(client, "first", result(A, "6Gi", "50"))
    second = add_claim(client, "second", result(A, "6Gi", "50"))
    served.prepare(first)

    with pytest.raises(PrepareError) as caught:
        served.prepare(second)

    assert str(caught.value) == (
        f"{A.name}: memory: found 6Gi for ResourceClaim default/second and 6Gi for ResourceClaim default/first, "
        "expected at most 10Gi"
    )
    assert files_of(root, second) == []
    served.unprepare(first)
    served.prepare(second)


def test_a_call_that_waits_for_another_is_answered_while_the_kubelet_still_listens(
    served: FakeKubelet, client: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = add_claim(client, "train", result(A))
    asked, goes_on = hold_gets(client, monkeypatch)
    first = threading.Thread(target=served.prepare, args=(claim,))
    first.start()
    assert asked.wait(60)

    monkeypatch.setattr(fakekubelet, "CALL_TIMEOUT_S", 5.2)  # of which five are for disk and answer
    with pytest.raises(PrepareError, match=rf"^claim {claim.uid}: another call for it runs for more than 0\.\d+ s$"):
        served.prepare(claim)

    goes_on.set()
    first.join()


def test_after_the_api_server_is_back_claims_are_prepared_again(
    served: FakeKubelet, client: FakeKube, start_agent: Callable[..., NodeAgent]
) -> None:
    running = add_claim(client, "running", result(A))
    waiting = add_claim(client, "waiting", result(A))
    first = served.prepare(running)
    client.set_down(True)

    assert served.prepare(running) == first  # a pod that runs is not held up
    with pytest.raises(PrepareError, match=r"get /apis/.*/waiting: no answer from the API server"):
        served.prepare(waiting)
    assert served.unprepare(running) == {running.uid: ""}

    client.set_down(False)
    assert len(served.prepare(waiting)[waiting.uid]) == 1


def test_a_kubelet_that_restarts_finds_the_plugin_and_its_claims_again(served: FakeKubelet, client: FakeKube) -> None:
    claim = add_claim(client, "train", result(A))
    first = served.prepare(claim)

    served.restart()

    assert served.prepare(claim) == first


def test_an_agent_that_restarts_answers_with_the_same_ids(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path
) -> None:
    agent = start_agent()
    kubelet.register()
    claim = add_claim(client, "train", result(A))
    first = kubelet.prepare(claim)
    agent.stop()
    assert list((root / "kubelet").rglob("*.sock*")) == []

    start_agent()
    kubelet.restart()

    assert kubelet.prepare(claim) == first


def test_a_second_instance_does_not_take_the_sockets(
    start_agent: Callable[..., NodeAgent], served: FakeKubelet, root: Path, client: FakeKube
) -> None:
    with pytest.raises(Exception, match=r"dra\.sock\.lock: held by process \d+, expected no other instance"):
        start_agent()

    claim = add_claim(client, "train", result(A))
    assert claim.uid in served.prepare(claim)


def test_two_instances_with_pod_uids_work_side_by_side(
    start_agent: Callable[..., NodeAgent], client: FakeKube, kubelet: FakeKubelet
) -> None:
    # A rolling update: the new agent starts, then the old one goes; both know what the other prepared.
    old = start_agent(pod_uid="old")
    kubelet.register()
    first = add_claim(client, "first", result(A, "6Gi"))
    second = add_claim(client, "second", result(A, "6Gi"))
    new = start_agent(pod_uid="new")
    kubelet.prepare(first)
    old.stop()
    kubelet.restart()

    with pytest.raises(PrepareError, match="found 6Gi for ResourceClaim default/second and 6Gi for ResourceClaim"):
        kubelet.prepare(second)
    kubelet.unprepare(first)
    kubelet.prepare(second)
    assert new.ready() == ""


def test_an_agent_removes_the_sockets_of_one_that_was_killed_and_of_no_other(
    start_agent: Callable[..., NodeAgent], client: FakeKube, kubelet: FakeKubelet, root: Path
) -> None:
    start_agent(pod_uid="living")
    plugins, registry = root / "kubelet" / "plugins" / names.DRIVER_NAME, root / "kubelet" / "plugins_registry"
    left = [
        plugins / "dra-killed.sock",
        plugins / "dra-killed.sock.lock",
        registry / f"{names.DRIVER_NAME}-killed-reg.sock",
    ]
    for path in left:
        path.touch()

    start_agent(pod_uid="new")

    assert [path for path in left if path.exists()] == []
    assert can_connect(plugins / "dra-living.sock")
    assert can_connect(registry / f"{names.DRIVER_NAME}-living-reg.sock")


def test_the_state_folder_of_another_driver_is_left_alone(start_agent: Callable[..., NodeAgent], root: Path) -> None:
    start_agent()

    with pytest.raises(StateError) as caught:
        start_agent(driver_name="other.example.com")

    assert str(caught.value) == (
        f"state folder {root}/state: found that of driver vgpu.dra-driver.io, expected that of other.example.com: give "
        "each driver a --state-dir of its own"
    )


def test_a_pod_from_before_the_state_folder_was_moved_can_start_its_containers_again_until_it_is_gone(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path
) -> None:
    before = start_agent()
    kubelet.register()
    claim = add_claim(client, "train", result(A))
    kubelet.prepare(claim)
    spec = root / "cdi" / f"vgpu.dra-driver.io-claim_{claim.uid}.json"
    content = spec.read_bytes()
    before.stop()

    start_agent(state_dir=root / "moved")
    kubelet.restart()

    assert spec.read_bytes() == content
    assert kubelet.unprepare(claim) == {claim.uid: ""}
    assert not spec.exists()


def test_the_health_of_all_devices_is_streamed_and_follows_changes(
    start_agent: Callable[..., NodeAgent], backend: FakeDiscovery, kubelet: FakeKubelet
) -> None:
    start_agent(heartbeat_s=0.02)
    kubelet.register()
    stream: Any = kubelet.healths()

    def next_healths() -> dict[str, tuple[int, str]]:
        return {health.device.device_name: (health.health, health.message) for health in next(stream).devices}

    assert next_healths() == {A.name: (1, ""), B.name: (1, "")}
    backend.found = builders_discovery_without_b()
    assert next_healths() == {A.name: (1, ""), B.name: (2, "the device is no longer there")}
    stream.cancel()


def test_a_slot_is_as_healthy_as_its_gpu_from_the_moment_a_claim_holds_it(
    start_agent: Callable[..., NodeAgent], client: FakeKube, backend: FakeDiscovery, kubelet: FakeKubelet
) -> None:
    start_agent(heartbeat_s=0.02, health_interval_s=1000.0)
    kubelet.register()
    stream: Any = kubelet.healths()

    def next_healths() -> dict[str, tuple[int, str]]:
        return {health.device.device_name: (health.health, health.message) for health in next(stream).devices}

    assert next_healths() == {A.name: (1, ""), B.name: (1, "")}
    slots = [f"{device.name}-slot-1024m-10c-0" for device in (A, B)]
    for device, slot in zip((A, B), slots, strict=True):
        kubelet.prepare(add_claim(client, f"holds-{slot}", {**result(device, memory=None), "device": slot}))
    while slots[1] not in (healths := next_healths()):
        pass  # each claim has news of its own
    assert healths == dict.fromkeys((A.name, B.name, *slots), (1, ""))
    backend.found = builders_discovery_without_b()
    gone = (2, "the device is no longer there")
    while healths == (now := next_healths()):
        pass  # the news of the other claim, if it came behind
    assert now == {A.name: (1, ""), B.name: gone, slots[0]: (1, ""), slots[1]: gone}
    stream.cancel()


def test_the_gpu_of_a_claim_that_was_gone_before_the_agent_started_is_told_unhealthy(
    start_agent: Callable[..., NodeAgent], client: FakeKube, backend: FakeDiscovery, kubelet: FakeKubelet
) -> None:
    agent = start_agent()
    kubelet.register()
    kubelet.prepare(add_claim(client, "train", result(B)))
    agent.stop()
    backend.found = builders_discovery_without_b()
    start_agent()
    kubelet.restart()
    stream: Any = kubelet.healths()
    told = {health.device.device_name: (health.health, health.message) for health in next(stream).devices}
    assert told == {A.name: (1, ""), B.name: (2, "the device is no longer there")}
    stream.cancel()


def builders_discovery_without_b() -> Any:
    from tests.unit.kubeletplugin.builders import discovery

    return discovery(A)


def test_an_allocation_that_names_a_device_that_is_gone_is_refused(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    gone = gpu(7)
    claim = add_claim(client, "train", result(gone))

    with pytest.raises(PrepareError) as caught:
        served.prepare(claim)

    assert str(caught.value) == (
        f"ResourceClaim default/train: allocated device {gone.name} is not on this node, found {A.name}, {B.name}"
    )
    assert files_of(root, claim) == []


def test_a_socket_path_that_is_too_long_is_refused_with_its_length(client: FakeKube, tmp_path: Path) -> None:
    from api.errors import ConfigError
    from kubeletplugin.kubelet.sockets import SocketPaths

    folder = Path("/" + "x" * 80)
    longest = "v" * names.MAX_DRIVER_NAME
    SocketPaths.of(Path("/var/snap/microk8s/common/var/lib/kubelet"), longest, "5c1f2d3e-0000-4000-8000-000000000001")

    with pytest.raises(ConfigError) as caught:
        SocketPaths.of(folder, names.DRIVER_NAME, None)

    path = folder / "plugins_registry" / "vgpu.dra-driver.io-reg.sock"
    assert str(caught.value) == (
        f"socket {path}: found {len(str(path))} characters, expected at most 107: choose a shorter "
        "--driver-name or --kubelet-dir"
    )
