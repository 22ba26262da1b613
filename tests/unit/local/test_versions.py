"""Which versions of Kubernetes there are, under which names, and what each is started with."""

import pytest

from deploy.local import versions
from deploy.local.errors import LocalClusterError


def test_a_version_goes_by_its_short_name_and_by_its_place() -> None:
    known = list(versions.pinned())
    assert versions.resolve("oldest") == versions.resolve("1.32") == known[0]
    assert versions.resolve("newest") == known[-1]
    for version in known:
        assert versions.resolve(version) == versions.resolve(version.rpartition(".")[0]) == version
    assert versions.default() in known


def test_a_version_that_no_module_pins_is_refused_with_those_that_are() -> None:
    with pytest.raises(LocalClusterError) as refused:
        versions.resolve("1.2.3")
    known = ", ".join(versions.pinned())
    assert str(refused.value) == f"no Go module pins Kubernetes 1.2.3, expected one of {known}"


def test_versions_before_dynamic_resource_allocation_was_general_are_told_to_serve_it() -> None:
    assert versions.runtime_config("1.32.10", {}) == "resource.k8s.io/v1beta1=true"
    assert versions.runtime_config("1.34.10", {}) == "resource.k8s.io/v1=true"
    assert versions.feature_gates("1.33.0", {}) == {"DynamicResourceAllocation": True}
    assert versions.feature_gates("1.34.10", {"DRAConsumableCapacity": True}) == {"DRAConsumableCapacity": True}


@pytest.mark.parametrize(
    ("version", "gates", "served"),
    [
        ("1.34.10", {"DRADeviceTaints": True}, "resource.k8s.io/v1=true,resource.k8s.io/v1alpha3=true"),
        ("1.36.3", {"DRADeviceTaintRules": True}, "resource.k8s.io/v1=true,resource.k8s.io/v1beta2=true"),
        ("1.36.3", {"DRADeviceTaintRules": False}, "resource.k8s.io/v1=true"),
        ("1.37.1", {"DRADeviceTaintRules": True}, "resource.k8s.io/v1=true"),
    ],
)
def test_the_gate_of_taint_rules_brings_the_version_that_has_them(
    version: str, gates: dict[str, bool], served: str
) -> None:
    assert versions.runtime_config(version, gates) == served


def test_the_environment_chooses_for_a_cluster_that_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(versions.VERSION_VARIABLE, "1.34")
    monkeypatch.setenv(versions.GATES_VARIABLE, "A=true,B=false")
    assert versions.chosen() == (versions.resolve("1.34"), {"A": True, "B": False})
    assert versions.format_gates(versions.chosen()[1]) == "A=true,B=false"


@pytest.mark.parametrize("text", ["A", "A=yes", "A=true;B=true"])
def test_a_feature_gate_that_is_neither_on_nor_off_is_refused(text: str) -> None:
    with pytest.raises(LocalClusterError) as refused:
        versions.parse_gates(text)
    assert str(refused.value) == f"feature gates: found {text!r}, expected NAME=true or NAME=false"
