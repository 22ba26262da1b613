"""Reading claims: in the version that the API server serves now, and never for longer than the kubelet waits."""

import pytest
from typing_extensions import override

from api import kube
from api.claims import ClaimView
from api.deadlines import within
from api.errors import ClaimError, KubeError, NotFoundError
from api.kube import JSON
from api.kubefake import FakeKube
from api.names import ClaimUID
from kubeletplugin.claims.claimreading import ClaimReader, ClaimReference
from tests.unit.kubeletplugin.builders import claim_object, gpu, result

GROUP = "resource.k8s.io"


def store(client: FakeKube, version: str) -> ClaimReference:
    stored = client.create(kube.claims(version), claim_object("train", [result(gpu(0))]))
    return ClaimReference("default", "train", ClaimUID(stored["metadata"]["uid"]))


def requests(client: FakeKube, reader: ClaimReader, reference: ClaimReference) -> list[str]:
    client.requests.clear()
    reader.read(reference)
    return [path for _, path in client.requests]


def test_a_claim_is_read_in_the_best_version_with_one_request_each_time() -> None:
    client = FakeKube(versions={GROUP: ("v1beta2", "v1")})
    reference = store(client, "v1")
    reader = ClaimReader(client)
    reader.read(reference)

    assert requests(client, reader, reference) == ["/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/train"]


def test_a_version_that_is_no_longer_served_is_left_at_once() -> None:
    client = FakeKube(versions={GROUP: ("v1beta1",)})
    reader = ClaimReader(client)
    reader.read(store(client, "v1beta1"))

    client.set_versions({GROUP: ("v1",)})
    reference = store(client, "v1")

    assert reader.read(reference).uid == reference.uid


def test_a_better_version_is_used_at_once_since_the_older_one_may_hide_what_was_consumed() -> None:
    client = FakeKube(versions={GROUP: ("v1beta1",)})
    reader = ClaimReader(client)
    reader.read(store(client, "v1beta1"))
    client.set_versions({GROUP: ("v1beta1", "v1")})
    reference = store(client, "v1")

    assert reader.read(reference).uid == reference.uid


def test_a_claim_that_is_gone_is_told_so() -> None:
    client = FakeKube()
    reference = store(client, "v1")
    client.delete(kube.claims("v1"), {"metadata": {"namespace": "default", "name": "train"}})

    with pytest.raises(ClaimError) as caught:
        ClaimReader(client).read(reference)

    assert str(caught.value) == f"ResourceClaim default/train: found none, expected the one with uid {reference.uid}"


def test_a_404_for_the_version_is_not_taken_for_a_claim_that_is_gone() -> None:
    # Two API servers of different versions behind one address: discovery is the word of one, the GET meets the other.
    client = FakeKube(versions={GROUP: ("v1",)})
    reference = store(client, "v1")
    reader = ClaimReader(client)
    path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/train"
    reader.read(reference)
    client.fail_next(NotFoundError(f"GET {path}: the server could not find the requested resource"))

    with pytest.raises(NotFoundError) as caught:
        reader.find(reference)

    assert str(caught.value) == f"GET {path}: the server could not find the requested resource"
    assert reader.read(reference).uid == reference.uid


def test_a_server_that_answers_nothing_is_waited_for_once_and_asked_again_later() -> None:
    now = [0.0]

    class Silent(FakeKube):
        silent = True

        def get(self, resource: kube.Resource, name: str, namespace: str | None = None) -> kube.JSON:
            if self.silent:
                now[0] += 15
                raise KubeError("no answer from the API server: timed out")
            return super().get(resource, name, namespace)

    client = Silent()
    reference = store(client, "v1")
    reader = ClaimReader(client, lambda: now[0])
    for _ in range(3):
        with pytest.raises(KubeError, match="timed out"):
            reader.read(reference)
    assert now[0] == 15

    now[0] += 6
    client.silent = False

    assert reader.read(reference).uid == reference.uid


def test_several_claims_are_read_with_one_request_each_and_those_that_cannot_be_read_tell_why() -> None:
    client = FakeKube()
    reference = store(client, "v1")
    gone = ClaimReference("default", "gone", ClaimUID("gone-uid"))
    again = ClaimReference("default", "train", ClaimUID("former-uid"))
    reader = ClaimReader(client)
    reader.refresh()
    client.requests.clear()

    found = reader.read_all([reference, again, reference]).claims

    assert len(client.requests) == 3
    message = f"found uid {reference.uid}, expected former-uid: it was deleted and created again"
    assert [getattr(one, "uid", str(one)) for one in found] == [
        reference.uid,
        f"ResourceClaim default/train: {message}",
        reference.uid,
    ]
    assert [str(one) for one in reader.read_all([gone, gone]).claims] == [
        "ResourceClaim default/gone: found none, expected the one with uid gone-uid"
    ] * 2
    client.set_down(True)
    assert all(isinstance(one, KubeError) for one in reader.read_all([reference, gone]).claims)


def test_several_claims_are_read_in_a_better_version_as_soon_as_it_is_served() -> None:
    client = FakeKube(versions={GROUP: ("v1beta1",)})
    reader = ClaimReader(client)
    reader.read(store(client, "v1beta1"))
    client.set_versions({GROUP: ("v1beta1", "v1")})
    reference = store(client, "v1")

    assert {getattr(one, "uid", one) for one in reader.read_all([reference, reference]).claims} == {reference.uid}


class Busy(FakeKube):
    """Puts off so many requests."""

    times = 0

    @override
    def get(self, resource: kube.Resource, name: str, namespace: str | None = None) -> JSON:
        found = super().get(resource, name, namespace)
        if self.times:
            self.times -= 1
            error = KubeError("too many requests", 429)
            error.wait_s = 1.0
            raise error
        return found


@pytest.fixture
def busy() -> tuple[Busy, ClaimReader, list[float]]:
    """A busy API server, a reader by a clock of its own, and the pauses that it makes."""
    client, pauses = Busy(), [0.0]
    return client, ClaimReader(client, lambda: sum(pauses), pauses.append), pauses


def test_a_busy_server_is_asked_again_when_it_said(busy: tuple[Busy, ClaimReader, list[float]]) -> None:
    client, reader, pauses = busy
    reference = store(client, "v1")
    client.times = 3

    (claim,) = reader.read_patiently(reference).claims

    assert isinstance(claim, ClaimView)
    assert pauses[1:] == [1.0, 1.0, 1.0]


def test_a_busy_server_is_left_alone_until_it_said_by_those_who_do_not_wait(
    busy: tuple[Busy, ClaimReader, list[float]],
) -> None:
    client, reader, pauses = busy
    reference = store(client, "v1")
    reader.refresh()
    client.times = 1
    client.requests.clear()

    for _ in range(3):
        assert [str(one) for one in reader.read_all([reference]).claims] == ["too many requests"]
        with pytest.raises(KubeError, match=r"^too many requests$"):
            reader.read(reference)
    assert len(client.requests) == 1

    pauses.append(1.0)
    assert reader.read(reference).uid == reference.uid


def test_a_busy_server_is_not_waited_for_longer_than_calls_may_hold_threads_or_than_their_deadline(
    busy: tuple[Busy, ClaimReader, list[float]],
) -> None:
    client, reader, pauses = busy
    reference = store(client, "v1")
    client.times = 1000

    assert [str(one) for one in reader.read_patiently(reference).claims] == ["too many requests"]
    assert sum(pauses) <= 5

    pauses.append(1.0)
    before_s = sum(pauses)
    with within(0.5):
        assert [str(one) for one in reader.read_patiently(reference).claims] == ["too many requests"]
    assert sum(pauses) == before_s
