"""Looks at the running demo and says what is so and what is not. Called by the demo and the end-to-end tests."""

import re
import time
from collections.abc import Mapping

from api import names
from api.errors import KubeError
from api.httpkube import HTTPKubeClient
from api.kube import EVENTS, Selection
from api.slots import parse_slot
from deploy.demo import checks
from deploy.demo.checks import Check
from deploy.demo.scenario import Scenario
from deploy.demo.tenants import GPU, NAMESPACE, TENANTS, WAITING_MEMORY_MIB, WAITING_POD, A, B, Tenant
from libvgpu.stub import StubProcess

WINDOW_S = 5.0
TOLERANCE_POINTS = 3.0
OUT_OF_MEMORY_STATUS = 3
"""Exit status of `worker grab` when the driver refuses."""
_EVENT_TIMEOUT_S = 120


def look(scenario: Scenario) -> list[Check]:
    """Return all checks of the demo, in the order of its story."""
    return [
        *both_run_on_one_gpu(scenario),
        *each_sees_its_share(scenario),
        *greed_is_refused(scenario),
        *time_is_divided(scenario),
        *the_card_agrees(scenario),
        *the_third_waits(scenario),
    ]


def both_run_on_one_gpu(scenario: Scenario) -> list[Check]:
    """Both pods run, and their claims are parts of the same device."""
    pods = scenario.json("-n", NAMESPACE, "get", "pods")["items"]
    phases = {pod["metadata"].get("labels", {}).get("app"): pod["status"]["phase"] for pod in pods}
    claims = scenario.json("-n", NAMESPACE, "get", "resourceclaims")["items"]
    results = [result for claim in claims for result in _results(claim)]
    devices = sorted({_gpu(result["device"]) for result in results})
    return [
        *(checks.equal(f"{tenant.name} runs", "Running", phases.get(tenant.name)) for tenant in TENANTS),
        checks.equal("claims that hold a part of a device", len(TENANTS), len(results)),
        Check("the GPU that they are parts of", "one for both", ", ".join(devices), len(devices) == 1),
    ]


def each_sees_its_share(scenario: Scenario) -> list[Check]:
    """The CUDA program and nvidia-smi see a card of the share's size, and the blob went in undamaged."""
    found: list[Check] = []
    for tenant in TENANTS:
        smi = scenario.run_in(tenant, "nvidia-smi")
        loaded = f"loaded blob_mb={tenant.blob_mb} damaged_chunks=0"
        log = _log_until(scenario, tenant, "loaded ")
        found += [
            checks.contains(f"{tenant.name}: nvidia-smi", f"{tenant.memory_mib}MiB", smi.stdout or smi.stderr),
            checks.contains(f"{tenant.name}: CUDA", f"total_mib={tenant.memory_mib} ", log),
            checks.contains(f"{tenant.name}: blob", loaded, log),
        ]
    return found


def greed_is_refused(scenario: Scenario) -> list[Check]:
    """A asks for more than its share and is refused by the driver's own error; B goes on, undamaged."""
    before = _launches(scenario.logs(B))
    greedy = scenario.run_in(A, "worker", "grab", str(B.blob_mb))
    pods = scenario.json("-n", NAMESPACE, "get", "pods", "-l", f"app={B.name}")["items"]
    restarts = sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])
    after = _launches(_log_until(scenario, B, "computing ", more_than=before))
    return [
        checks.contains(f"{A.name} asks for more", "CUDA_ERROR_OUT_OF_MEMORY", greedy.stdout or greedy.stderr),
        checks.equal("its exit status", OUT_OF_MEMORY_STATUS, greedy.returncode),
        checks.equal(f"restarts of {B.name}", 0, restarts),
        Check(f"{B.name} goes on", f"more than {before} launches", f"{after} launches", after > before),
    ]


def time_is_divided(scenario: Scenario) -> list[Check]:
    """Under load each tenant holds the engine for its percentage, by the card's own clock."""
    start, begun_s = _sum_by_tenant(scenario, "gpu_time_ns"), time.monotonic()
    time.sleep(WINDOW_S)  # the window of a measurement; nothing is awaited here
    end, ended_s = _sum_by_tenant(scenario, "gpu_time_ns"), time.monotonic()
    passed_ns = (ended_s - begun_s) * 1e9
    return [
        checks.capped(
            f"{tenant.name}: GPU time over {WINDOW_S:g} s",
            tenant.cores_percent,
            100 * (end[tenant.name] - start[tenant.name]) / passed_ns,
            TOLERANCE_POINTS,
            "%",
        )
        for tenant in TENANTS
    ]


def the_card_agrees(scenario: Scenario) -> list[Check]:
    """By the card's own count nobody ever held more than its share."""
    peaks = _sum_by_tenant(scenario, "peak_bytes")
    allowed = sum(tenant.memory_bytes for tenant in TENANTS)
    peak = max(card.peak_bytes for card in scenario.cards() if any(map(_tenant_of, card.processes)))
    return [
        *(
            checks.at_most(f"{tenant.name}: the card's own count", tenant.memory_bytes, peaks[tenant.name], "bytes")
            for tenant in TENANTS
        ),
        checks.at_most("together, at any moment", allowed, peak, "bytes"),
    ]


def the_third_waits(scenario: Scenario) -> list[Check]:
    """The pod that asks for more than any GPU has is pending, and an event gives a reason for each device."""
    phase = scenario.json("-n", NAMESPACE, "get", "pod", WAITING_POD)["status"]["phase"]
    note = _event_note(HTTPKubeClient(str(scenario.cluster.kubeconfig)))
    # Of each device on its own: the GPU, or each of the slots that it is cut into.
    reasons = {_gpu(device): reason for device, reason in re.findall(r"/(\S+): (\w+)", note)}
    return [
        checks.equal(f"{WAITING_POD} waits", "Pending", phase),
        checks.equal(
            f"why: it asked for {WAITING_MEMORY_MIB}Mi",
            reason_for_too_much(scenario),
            reasons.get(names.device_name(GPU.uuid), note),
        ),
    ]


def reason_for_too_much(scenario: Scenario) -> str:
    """Return why a device is not for a claim that asks for more memory than it has."""
    by_amount = scenario.dialect.mode == "consumable"
    return names.REASON_INSUFFICIENT_MEMORY if by_amount else names.REASON_NOT_SELECTED


def _results(claim: Mapping[str, object]) -> list[dict[str, str]]:
    status = claim.get("status")
    allocation = status.get("allocation", {}) if isinstance(status, dict) else {}
    results: list[dict[str, str]] = allocation.get("devices", {}).get("results", [])
    return results


def _gpu(device: str) -> str:
    """Return the GPU that a device is, or is a slot of."""
    slot = parse_slot(device)
    return slot.gpu if slot else device


def _sum_by_tenant(scenario: Scenario, field: str) -> dict[str, int]:
    """Return a figure of the card's own count by tenant: a container's host name is the name of its pod."""
    sums = {tenant.name: 0 for tenant in TENANTS}
    for process in (process for card in scenario.cards() for process in card.processes):
        if tenant := _tenant_of(process):
            sums[tenant.name] += int(getattr(process, field))
    return sums


def _tenant_of(process: StubProcess) -> Tenant | None:
    return next((tenant for tenant in TENANTS if process.hostname.startswith(tenant.name)), None)


def _launches(log: str) -> int:
    lines = [line for line in log.splitlines() if line.startswith("computing ")]
    return int(lines[-1].split()[1].removeprefix("launches=")) if lines else 0


def _log_until(scenario: Scenario, tenant: Tenant, start: str, more_than: int = -1) -> str:
    """Return a tenant's log as soon as it has a line that starts so (and counts more launches than before)."""
    with scenario.follow(tenant) as following:
        assert following.stdout is not None
        for line in following.stdout:
            log = scenario.logs(tenant)
            said = any(one.startswith(start) for one in log.splitlines())
            if (said and _launches(log) > more_than) or not line:
                break
        following.terminate()
    return scenario.logs(tenant)


def _event_note(kube: HTTPKubeClient) -> str:
    """Return the explanation of the waiting pod, as soon as it is written."""
    selection = Selection(NAMESPACE, fields=f"regarding.name={WAITING_POD},reason={names.EVENT_UNSATISFIABLE}")
    listed = kube.list(EVENTS, selection)
    if listed["items"]:
        return str(listed["items"][-1]["note"])
    try:
        for event in kube.watch(EVENTS, listed["metadata"]["resourceVersion"], selection, _EVENT_TIMEOUT_S):
            if event.type in {"ADDED", "MODIFIED"}:
                return str(event.object["note"])
    except KubeError as error:
        return f"(no event: {error})"
    return f"(no event within {_EVENT_TIMEOUT_S} s)"
