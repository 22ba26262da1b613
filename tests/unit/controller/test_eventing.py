"""Events: one per object and reason, repeated ever more rarely, replaced when their text changes."""

from datetime import UTC, datetime

import pytest

from api.events import Message, Subject
from api.kube import EVENTS
from api.kubefake import FakeKube
from controller.eventing import Said, due_in_s, render, write

CLAIM = Subject("resource.k8s.io/v1", "ResourceClaim", "demo", "c", "uid-c")
POD = Subject("v1", "Pod", "demo", "p", "uid-p")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
MESSAGE = Message("VGPUUnsatisfiable", "no room", "Allocating")


def test_an_event_is_rendered_for_events_k8s_io_v1() -> None:
    event = render(CLAIM, MESSAGE, "controller-1", NOW, POD)
    assert event["metadata"].pop("name").startswith("c.")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "demo"},
        "eventTime": "2026-01-02T03:04:05.000678Z",
        "reportingController": "dra-driver-vgpu-controller",
        "reportingInstance": "controller-1",
        "action": "Allocating",
        "reason": "VGPUUnsatisfiable",
        "type": "Warning",
        "regarding": {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "namespace": "demo",
            "name": "c",
            "uid": "uid-c",
        },
        "related": {"apiVersion": "v1", "kind": "Pod", "namespace": "demo", "name": "p", "uid": "uid-p"},
        "note": "no room",
    }


def test_two_claims_of_one_pod_have_an_event_each() -> None:
    other = Subject("resource.k8s.io/v1", "ResourceClaim", "demo", "d", "uid-d")
    long = Subject("v1", "Pod", "demo", "p" * 253, "u")
    first, second, third = (
        render(subject, MESSAGE, "controller-1", NOW, related)["metadata"]["name"]
        for subject, related in ((POD, CLAIM), (POD, other), (long, None))
    )
    assert first != second
    assert len(third) == 253


@pytest.mark.parametrize(
    ("said", "note", "wait_s"),
    [
        (None, "a", 0),
        (Said("a", 100, 1), "b", 60),
        (Said("a", 40, 1), "b", 0),
        (Said("a", 100, 1), "a", 60),
        (Said("a", 100, 2), "a", 120),
        (Said("a", 100, 3), "a", 240),
        (Said("a", 100, 9), "a", 900),
        (Said("a", 0, 1000), "a", 800),
    ],
)
def test_news_comes_once_a_minute_and_the_same_again_ever_more_rarely(
    said: Said | None, note: str, wait_s: float
) -> None:
    assert due_in_s(said, note, now=100) == wait_s


def test_a_long_note_is_cut_to_the_bytes_that_the_api_server_takes() -> None:
    note = render(CLAIM, Message("VGPUConfigInvalid", "a" + 1000 * "ö", "Checking"), "i", NOW)["note"]
    assert note == "a" + 511 * "ö"


def test_the_same_text_again_is_counted() -> None:
    kube = FakeKube()
    for _ in range(3):
        write(kube, render(CLAIM, MESSAGE, "i", NOW))
    (event,) = kube.objects(EVENTS)
    assert event["series"]["count"] == 3


def test_another_text_replaces_the_event() -> None:
    kube = FakeKube()
    write(kube, render(CLAIM, MESSAGE, "i", NOW))
    write(kube, render(CLAIM, Message("VGPUUnsatisfiable", "still no room", "Allocating"), "i", NOW))
    (event,) = kube.objects(EVENTS)
    assert event["note"] == "still no room"
    assert "series" not in event
