"""The files that users apply: the CRD is the one in the code, values fit their schema, the examples are right."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api import names
from api.claims import ClaimView
from api.nodeinventory import crd
from api.offerrules import OfferRule, SlotSize
from controller.reasons.checking import check_configs, check_template

DEPLOY = Path(__file__).parents[3] / "deploy"
CHART = DEPLOY / "helm" / "dra-driver-vgpu"
_SCHEMA = json.loads((CHART / "values.schema.json").read_text())
_DEFINED = _SCHEMA["$defs"]
_QUANTITY, _PATH = _DEFINED["quantity"]["pattern"], _DEFINED["path"]["pattern"]
_AMOUNT = _DEFINED["amounts"]["additionalProperties"]["pattern"]
_REPOSITORY = _SCHEMA["properties"]["image"]["properties"]["repository"]["pattern"]
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))


def _values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values as helm changes them."""
    changed = {
        key: _merged(values.get(key, {}), value) if isinstance(value, dict) else value for key, value in changes.items()
    }
    return {**values, **changed}


def _unexpected(key: str) -> str:
    return f"Additional properties are not allowed ('{key}' was unexpected)"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def test_the_crd_of_the_chart_is_the_one_that_the_program_prints() -> None:
    assert documents(CHART / "crds" / "nodeinventories.yaml") == [crd()], "run `make generate`"


def test_the_default_values_fit_their_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(_SCHEMA)
    jsonschema.validate(_values(), _SCHEMA)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"offerMode": "slices"}, "'slices' is not one of ['auto', 'consumable', 'counters', 'slots']"),
        ({"offers": [{"ordr": "spread"}]}, _unexpected("ordr")),
        ({"drivername": "x"}, _unexpected("drivername")),
        ({"nodeAgent": {"stateDir": "var/lib/shares"}}, f"'var/lib/shares' does not match {_PATH!r}"),
        ({"nodeAgent": {"kubeletDir": "/"}}, f"'/' does not match {_PATH!r}"),
        ({"nodeAgent": {"cdiDir": "/run/../cdi"}}, f"'/run/../cdi' does not match {_PATH!r}"),
        ({"nodeAgent": {"cdiDir": "/run/cdi: x"}}, f"'/run/cdi: x' does not match {_PATH!r}"),
        ({"nodeAgent": {"env": [{"name": "A", "value": 1}]}}, "1 is not of type 'string'"),
        ({"nodeAgent": {"updateStrategy": {"maxSurge": 1}}}, _unexpected("maxSurge")),
        ({"nodeAgent": {"resources": {"limit": {"memory": "1Gi"}}}}, _unexpected("limit")),
        ({"nodeAgent": {"resources": {"limits": {"memory": "lots"}}}}, f"'lots' does not match {_AMOUNT!r}"),
        ({"nodeAgent": {"restrictToOwnNode": None}}, "None is not of type 'boolean'"),
        ({"driverName": "vgpu..io"}, f"'vgpu..io' does not match {_SCHEMA['properties']['driverName']['pattern']!r}"),
        ({"image": {"repository": "registry/vgpu:1.0"}}, f"'registry/vgpu:1.0' does not match {_REPOSITORY!r}"),
        ({"image": {"repository": "https://registry/vgpu"}}, f"'https://registry/vgpu' does not match {_REPOSITORY!r}"),
        ({"fullnameOverride": "GPU"}, f"'GPU' does not match {_DEFINED['name']['pattern']!r}"),
        ({"controller": {"replicas": -1}}, "-1 is less than the minimum of 0"),
        ({"nodeAgent": {"overuseSlack": {"memory": "much"}}}, f"'much' does not match {_QUANTITY!r}"),
        ({"offers": [{"slots": [{"memory": "10GB"}]}]}, f"'10GB' does not match {_QUANTITY!r}"),
        ({"driverName": "x" * 64}, f"'{'x' * 64}' is too long"),
    ],
)
def test_wrong_values_are_refused_with_what_is_wrong(values: dict[str, Any], message: str) -> None:
    (error,) = jsonschema.Draft202012Validator(_SCHEMA).iter_errors(_merged(_values(), values))
    assert error.message == message


@pytest.mark.parametrize(
    "values",
    [
        {"nodeAgent": {"kubeletDir": "/var/snap/microk8s/common/var/lib/kubelet", "driverRoot": "/run/nvidia/driver"}},
        {"nodeAgent": {"holdBack": [0, "1", "model:*Tesla T4*", "GPU-5c1f2d3e-0000-4000-8000-000000000001"]}},
        {"nodeAgent": {"updateStrategy": {"type": "OnDelete"}, "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}},
        {"image": {"repository": "registry.example.com:5000/gpu/dra-driver-vgpu", "tag": f"0.1.0@sha256:{'0' * 64}"}},
        {"driverName": "vgpu"},
    ],
)
def test_values_that_make_sense_are_taken(values: dict[str, Any]) -> None:
    assert list(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(_merged(_values(), values))) == []


def test_what_has_a_default_must_be_there() -> None:
    """Helm takes a default away by `null`, and `--reuse-values` brings the values of a release that had fewer."""

    def missing(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            if value not in ("", [], {}) and key not in schema["required"]:
                found.append(f"{path}{key}")
            if "required" in schema["properties"][key]:
                found += missing(value, schema["properties"][key], f"{path}{key}.")
        return found

    assert missing(_values(), _SCHEMA) == []


def test_rules_of_the_chart_are_those_of_the_program() -> None:
    assert set(_SCHEMA["properties"]["offers"]["items"]["properties"]) == {
        field.alias for field in OfferRule.model_fields.values()
    }
    assert set(_DEFINED["sizes"]["items"]["properties"]) == {field.alias for field in SlotSize.model_fields.values()}


def test_the_default_values_are_the_defaults_of_the_program() -> None:
    values = _values()
    assert values["driverName"] == names.DRIVER_NAME
    assert values["nodeAgent"]["cdiDir"] == names.CDI_DIR
    assert values["nodeAgent"]["kubeletDir"] == names.KUBELET_DIR
    assert values["nodeAgent"]["stateDir"] == names.STATE_DIR
    assert {f"vgpu-{vendor}" for vendor in values["deviceClasses"]["vendors"]} == {names.device_class("nvidia")}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_asks_for_our_devices_with_parameters_that_are_right(path: Path) -> None:
    templates = [obj for obj in documents(path) if obj["kind"] == "ResourceClaimTemplate"]
    assert templates
    for template in templates:
        template["metadata"] |= {"namespace": "default", "uid": "u"}
        assert check_template(template, names.DRIVER_NAME) == ""
        view = ClaimView.from_object({"metadata": template["metadata"], "spec": template["spec"]["spec"]})
        assert {request.device_class for request in view.requests} <= {"vgpu", "vgpu-nvidia"}
        assert all(config.driver == names.DRIVER_NAME for config in view.configs)
        assert check_configs(view.configs, names.DRIVER_NAME, "example") == ""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_pods_of_an_example_use_its_templates_in_every_container(path: Path) -> None:
    objects = documents(path)
    templates = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "ResourceClaimTemplate"}
    specs = [
        obj["spec"]["template"]["spec"] if obj["kind"] == "Deployment" else obj["spec"]
        for obj in objects
        if obj["kind"] in {"Deployment", "Pod"}
    ]
    assert specs
    for spec in specs:
        assert {claim["resourceClaimTemplateName"] for claim in spec["resourceClaims"]} == templates
        claims = [claim["name"] for claim in spec["resourceClaims"]]
        for container in spec["containers"]:
            assert [claim["name"] for claim in container["resources"]["claims"]] == claims


def test_the_readme_of_the_examples_names_each_of_them() -> None:
    text = (DEPLOY / "examples" / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"[{path.name}]({path.name})" not in text] == []
