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
_QUANTITY = json.loads((CHART / "values.schema.json").read_text())["$defs"]["quantity"]["pattern"]
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def test_the_crd_of_the_chart_is_the_one_that_the_program_prints() -> None:
    assert documents(CHART / "crds" / "nodeinventories.yaml") == [crd()], "run `make generate`"


def test_the_default_values_fit_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text()), schema)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"offerMode": "slices"}, "'slices' is not one of ['auto', 'consumable', 'counters', 'slots']"),
        ({"offers": [{"ordr": "spread"}]}, "Additional properties are not allowed ('ordr' was unexpected)"),
        ({"drivername": "x"}, "Additional properties are not allowed ('drivername' was unexpected)"),
        ({"nodeAgent": {"driverRoot": "opt/driver"}}, "'opt/driver' does not match '^/'"),
        ({"controller": {"replicas": -1}}, "-1 is less than the minimum of 0"),
        ({"nodeAgent": {"overuseSlack": {"memory": "much"}}}, f"'much' does not match {_QUANTITY!r}"),
        ({"offers": [{"slots": [{"memory": "10GB"}]}]}, f"'10GB' does not match {_QUANTITY!r}"),
        ({"driverName": "x" * 64}, f"'{'x' * 64}' is too long"),
    ],
)
def test_wrong_values_are_refused_with_what_is_wrong(values: dict[str, Any], message: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    (error,) = jsonschema.Draft202012Validator(schema).iter_errors(values)
    assert error.message == message


def test_rules_of_the_chart_are_those_of_the_program() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["offers"]["items"]["properties"]) == {
        field.alias for field in OfferRule.model_fields.values()
    }
    assert set(schema["$defs"]["sizes"]["items"]["properties"]) == {
        field.alias for field in SlotSize.model_fields.values()
    }


def test_the_default_values_are_the_defaults_of_the_program() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
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
