"""The rights that the chart gives are enough on this version of Kubernetes, and not more than what is used.

Last of the end-to-end tests by its name: it looks at what all of them made the driver ask of the API server.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.scenario import DRIVER_NAMESPACE, Scenario

pytestmark = pytest.mark.cluster

_RELEASE = "vgpu-dra-driver-vgpu"
_ACCOUNTS = ("controller", "node-agent")
_RARE = {
    "controller": {
        "apiextensions.k8s.io/customresourcedefinitions update": "a CRD of an older release",
        "events.k8s.io/events get": "an event that was told before",
        "events.k8s.io/events update": "the same again",
        "events.k8s.io/events delete": "its text is another now",
        "resource.k8s.io/deviceclasses delete": "classes of former settings",
        "resource.k8s.io/deviceclasses update": "classes that somebody changed",
        "resource.k8s.io/devicetaintrules list": "API servers that serve them: from 1.37 on, before that behind a gate",
        "resource.k8s.io/devicetaintrules watch": "the same again",
        "vgpu.dra-driver.io/nodeinventories delete": "of Nodes that are gone",
        "vgpu.dra-driver.io/nodeinventories/status patch": "GPUs of which more is offered than there is",
    },
    "node-agent": {
        "events.k8s.io/events create": "overuse of a share",
        "pods get": "those of a claim, where a RuntimeClass for sandboxes exists",
    },
}
"""Rights for what an end-to-end run seldom or never brings about, and what that is."""


def _audited(scenario: Scenario, account: str) -> Iterator[dict[str, Any]]:
    user = f"system:serviceaccount:{DRIVER_NAMESPACE}:{_RELEASE}-{account}"
    log = scenario.cluster.layout.audit_log
    with log.open() as lines:
        for line in lines:
            # The API server is killed in some tests, perhaps while it writes a line, to which the next one adds.
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event["user"]["username"] == user:
                    yield event


def _right(event: dict[str, Any]) -> str:
    asked = event["objectRef"]
    group = f"{asked['apiGroup']}/" if "apiGroup" in asked else ""
    subresource = f"/{asked['subresource']}" if "subresource" in asked else ""
    return f"{group}{asked['resource']}{subresource} {event['verb']}"


def _granted(scenario: Scenario, account: str) -> set[str]:
    roles = scenario.json("get", "clusterroles", f"{_RELEASE}-{account}")["rules"]
    found = scenario.json("-n", DRIVER_NAMESPACE, "get", "roles")["items"]
    for role in found:
        if role["metadata"]["name"] == f"{_RELEASE}-{account}":
            roles = roles + role["rules"]
    return {
        f"{group}/{resource} {verb}".lstrip("/")
        for rule in roles
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("account", _ACCOUNTS)
def test_nothing_that_the_driver_asks_for_is_forbidden(scenario: Scenario, account: str) -> None:
    allowed, forbidden = set(), {}
    for event in _audited(scenario, account):
        what = (event["verb"], event["requestURI"].partition("?")[0])
        if event.get("responseStatus", {}).get("code") == 403:
            forbidden[what] = event["responseStatus"].get("message")
        else:
            allowed.add(what)
    assert allowed
    # An API server that has just started knows of no roles for a moment: what it refuses then, it allows soon.
    assert {what: message for what, message in forbidden.items() if what not in allowed} == {}


@pytest.mark.parametrize("account", _ACCOUNTS)
def test_no_right_is_given_that_nothing_needs(request: pytest.FixtureRequest, scenario: Scenario, account: str) -> None:
    run = {item.path for item in request.session.items}
    if not run.issuperset(Path(__file__).parent.glob("test_*.py")):
        pytest.skip("what is used shows in a run of all end-to-end tests")
    used = {_right(event) for event in _audited(scenario, account) if "objectRef" in event}
    assert sorted(_granted(scenario, account) - used - set(_RARE[account])) == []
