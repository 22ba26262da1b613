"""Views of ResourceClaims: the same claim read from each API version, and what its parameters come to."""

from typing import Any

import pytest

from api.allotments import vgpu_config
from api.claims import AllocationResult, ClaimView, OpaqueConfig, Toleration
from api.errors import ClaimError, ConfigError
from api.vgpuconfig import Policy

_DRIVER = "vgpu.dra-driver.io"
_EXACT = {
    "deviceClassName": "vgpu-nvidia",
    "capacity": {"requests": {"memory": "2Gi", "cores": "25"}},
    "selectors": [{"cel": {"expression": "true"}}],
}


def _claim(request: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team-a", "name": "train", "uid": "u-1"},
        "spec": {"devices": {"requests": [request]}},
        "status": status,
    }


def _parameters(**fields: object) -> dict[str, object]:
    return {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig", **fields}


@pytest.mark.parametrize(
    "request_", [{"name": "gpu", "exactly": _EXACT}, {"name": "gpu", **_EXACT}], ids=["v1 and v1beta2", "v1beta1"]
)
def test_a_request_reads_the_same_from_every_version(request_: dict[str, Any]) -> None:
    (request,) = ClaimView.from_object(_claim(request_)).requests
    assert request.name == "gpu"
    assert request.device_class == "vgpu-nvidia"
    assert request.capacity == {"memory": 2 << 30, "cores": 25}
    assert request.selectors == ("true",)
    assert request.count == 1


def test_alternatives_are_named_after_their_request() -> None:
    alternatives = [{"name": "large", **_EXACT}, {"name": "small", **_EXACT, "count": 2}]
    requests = ClaimView.from_object(_claim({"name": "gpu", "firstAvailable": alternatives})).requests
    assert [(request.name, request.count) for request in requests] == [("gpu/large", 1), ("gpu/small", 2)]


def test_tolerations_are_read_from_every_form_of_a_request() -> None:
    tolerant = {**_EXACT, "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}, {"value": "v"}]}
    alternatives = [{"name": "d", **tolerant}]
    for form in ({"exactly": tolerant}, tolerant, {"firstAvailable": alternatives}):
        (request,) = ClaimView.from_object(_claim({"name": "gpu", **form})).requests
        assert request.tolerations == (Toleration("k", "Exists", "", "NoSchedule"), Toleration(value="v"))


def test_consumed_capacity_is_found_with_and_without_a_domain() -> None:
    result = {"request": "gpu", "driver": _DRIVER, "pool": "node-1", "device": "gpu-1", "shareID": "s-1"}
    consumed = {"memory": "2Gi", f"{_DRIVER}/cores": "25"}
    allocation = {"devices": {"results": [result | {"consumedCapacity": consumed}]}}
    claim = ClaimView.from_object(_claim({"name": "gpu", "exactly": _EXACT}, allocation=allocation))
    assert claim.allocation is not None
    assert claim.allocation.results == (
        AllocationResult(
            index=0,
            request="gpu",
            driver=_DRIVER,
            pool="node-1",
            device="gpu-1",
            share_id="s-1",
            consumed={"memory": 2 << 30, "cores": 25},
            admin_access=False,
        ),
    )


def test_fractions_are_rounded_up_as_the_scheduler_does_also_where_other_drivers_name_capacities_like_ours() -> None:
    result = {"request": "cpu", "driver": "cpu.example", "pool": "p", "device": "cpu-0"}
    allocation = {
        "devices": {"results": [result | {"consumedCapacity": {"cores": "1500m", "cpu.example/memory": "0.5"}}]}
    }
    request = {"deviceClassName": "cpu", "capacity": {"requests": {"cores": "500m", "memory": "1500m"}}}

    claim = ClaimView.from_object(_claim({"name": "cpu", "exactly": request}, allocation=allocation))

    assert claim.requests[0].capacity == {"cores": 1, "memory": 2}
    assert claim.allocation is not None
    assert claim.allocation.results[0].consumed == {"cores": 2, "memory": 1}


def test_a_claim_with_a_damaged_spec_is_refused_by_name() -> None:
    with pytest.raises(ClaimError, match=r"^ResourceClaim team-a/train: expected the fields of resource.k8s.io"):
        ClaimView.from_object({"metadata": {"namespace": "team-a", "name": "train", "uid": "1"}, "spec": "x"})


def test_the_claim_wins_over_its_class_field_by_field() -> None:
    configs = (
        OpaqueConfig(_DRIVER, (), _parameters(memory="4Gi", policy="Burst"), from_class=True),
        OpaqueConfig(_DRIVER, ("gpu",), _parameters(memory="2Gi"), from_class=False),
        OpaqueConfig("other.example.com", (), {"anything": 1}, from_class=False),
        OpaqueConfig(_DRIVER, ("another",), _parameters(cores=10), from_class=False),
    )
    found = vgpu_config(configs, "gpu/large", _DRIVER, "ResourceClaim a/b")
    assert (found.memory, found.cores, found.policy) == (2 << 30, None, Policy.BURST)


def test_a_class_is_read_before_the_claim_whatever_the_order_in_the_object() -> None:
    def config(source: str, cores: int) -> dict[str, Any]:
        return {"source": source, "opaque": {"driver": _DRIVER, "parameters": _parameters(cores=cores)}}

    allocation = {"devices": {"results": [], "config": [config("FromClaim", 20), config("FromClass", 90)]}}
    claim = ClaimView.from_object(_claim({"name": "gpu", "exactly": _EXACT}, allocation=allocation))
    assert claim.allocation is not None
    assert vgpu_config(claim.allocation.configs, "gpu", _DRIVER, str(claim)).cores == 20


def test_wrong_parameters_name_the_claim() -> None:
    configs = (OpaqueConfig(_DRIVER, (), _parameters(cores=0), from_class=False),)
    with pytest.raises(ConfigError, match=r"^ResourceClaim a/b: cores: found 0, expected"):
        vgpu_config(configs, "gpu", _DRIVER, "ResourceClaim a/b")
