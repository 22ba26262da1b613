"""Which claims are told to which node's agent."""

from typing import Any

import pytest

from api.claims import ClaimView
from api.names import ANNOTATION_LIMITS, ClaimUID
from controller.cluster.followedclaims import FollowedClaims
from tests.unit.controller.builders import claim, result

UID = ClaimUID("uid-1")


def told(followed: FollowedClaims, node: str = "n1") -> list[tuple[str, str]]:
    return [(found.uid, found.digest) for found in followed.of(node)]


def test_a_claim_is_told_to_its_node_and_told_again_when_it_changes() -> None:
    followed = FollowedClaims()
    assert followed.note(UID, (), "d") == set(), "not allocated: on no node yet"
    assert followed.note(UID, ("n1",), "d") == {"n1"}
    assert told(followed) == [("uid-1", "d")]
    assert followed.note(UID, ("n1", "n1"), "d") == set()
    assert followed.note(UID, ("n1",), "e") == {"n1"}
    assert told(followed) == [("uid-1", "e")]
    assert told(followed, "n2") == []


@pytest.mark.parametrize("after", [(("n1",), ""), ((), "d")], ids=["as all others", "gone"])
def test_a_claim_that_is_as_all_others_or_gone_is_not_told_any_more(after: tuple[tuple[str, ...], str]) -> None:
    followed = FollowedClaims()
    followed.note(UID, ("n1",), "d")
    assert followed.note(UID, *after) == {"n1"}
    assert told(followed) == []
    assert followed.note(UID, *after) == set()


def test_a_claim_that_moves_is_told_to_both_nodes() -> None:
    followed = FollowedClaims()
    followed.note(UID, ("n1",), "d")
    assert followed.note(UID, ("n2",), "d") == {"n1", "n2"}
    assert (told(followed), told(followed, "n2")) == ([], [("uid-1", "d")])


def digest(*pods: str, made_for: str = "", text: str | None = None) -> str:
    obj: dict[str, Any] = claim(results=[result("gpu-1")])
    obj["status"]["reservedFor"] = [{"resource": "pods", "name": pod, "uid": pod} for pod in pods]
    if made_for:
        obj["metadata"]["ownerReferences"] = [{"kind": "Pod", "uid": made_for, "controller": True}]
    if text is not None:
        obj["metadata"]["annotations"] = {ANNOTATION_LIMITS: text}
    return ClaimView.from_object(obj).digest()


def test_a_claim_that_its_own_pod_uses_is_as_all_others_and_one_that_others_use_or_that_is_annotated_is_not() -> None:
    assert digest(made_for="p") == digest("p", made_for="p") == digest() == ""
    others = [
        digest("p"),
        digest("q"),
        digest("p", "q", made_for="p"),
        digest("p", made_for="p", text="{}"),
        digest("p", made_for="p", text="[]"),
        digest(text="{}"),
    ]
    assert "" not in others
    assert len(set(others)) == len(others)
    assert digest("q", "p") == digest("p", "q")
