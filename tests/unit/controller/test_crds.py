"""The controller brings the CRD of an older release up to date, and no other."""

import hashlib
import json
from typing import Any

import pytest

from api.errors import ConflictError, KubeError
from api.kubefake import FakeKube
from api.names import ANNOTATION_CRD_REVISION
from api.nodeinventory import CRD_REVISION, crd
from controller.crds import CRDS, update_crd
from tests.unit.controller.builders import make_controller, wait_until

NAME = crd()["metadata"]["name"]
DIGEST = "d88067d553755506"
"""Of the CRD at CRD_REVISION."""


def stored(kube: FakeKube) -> dict[str, Any]:
    return kube.get(CRDS, NAME)


def installed(revision: str | None) -> FakeKube:
    """An API server with a CRD of another schema, as a release of some revision has it."""
    kube = FakeKube()
    other = crd()
    other["metadata"]["annotations"] = {"of": "others"}
    if revision is not None:
        other["metadata"]["annotations"][ANNOTATION_CRD_REVISION] = revision
    other["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": {"type": "object"}}
    other["spec"]["conversion"] = {"strategy": "None"}
    kube.create(CRDS, other)
    return kube


@pytest.mark.parametrize("revision", [None, "", "one", str(CRD_REVISION - 1)])
def test_a_crd_of_an_older_release_gets_the_schema_of_this_one(revision: str | None) -> None:
    kube = installed(revision)
    assert update_crd(kube)
    assert stored(kube)["spec"] == {**crd()["spec"], "conversion": {"strategy": "None"}}
    assert stored(kube)["metadata"]["annotations"] == {"of": "others", ANNOTATION_CRD_REVISION: str(CRD_REVISION)}


@pytest.mark.parametrize("revision", [str(CRD_REVISION), str(CRD_REVISION + 1)])
def test_a_crd_of_this_release_or_of_a_newer_one_stays_as_it_is(revision: str) -> None:
    kube = installed(revision)
    before = stored(kube)
    assert not update_crd(kube)
    assert stored(kube) == before


def test_a_crd_that_must_not_be_changed_is_told_of_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    kube = installed(None)
    kube.fail_next(KubeError("customresourcedefinitions is forbidden", 403))
    assert not update_crd(kube)
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "cannot update the CRD")
    assert vars(record)["remedy"] == "dra-driver crds | kubectl apply -f -"


def test_a_crd_that_is_not_there_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    update_crd(FakeKube())
    (record,) = caplog.records
    assert vars(record)["error"] == f"{CRDS.path(name=NAME)}: not found"


def test_a_crd_that_somebody_changes_at_the_same_time_is_tried_again() -> None:
    kube = installed(None)

    class Changing(FakeKube):
        get = kube.get

        def replace(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise ConflictError("the object has been modified", 409)

    with pytest.raises(ConflictError):
        update_crd(Changing())


@pytest.mark.parametrize("update", [True, False])
def test_a_controller_updates_the_crd_when_it_begins_to_lead_if_it_is_told_to(update: bool) -> None:
    kube = installed(None)
    controller = make_controller(kube, update_crd=update)
    controller.start()
    try:
        wait_until(controller.idle)
        assert (ANNOTATION_CRD_REVISION in stored(kube)["metadata"]["annotations"]) is update
    finally:
        controller.stop()


def test_another_crd_has_another_revision() -> None:
    digest = hashlib.sha256(json.dumps(crd()["spec"], sort_keys=True).encode()).hexdigest()[:16]
    assert digest == DIGEST, "another CRD than that of this revision: raise CRD_REVISION, once a release, and note both"
