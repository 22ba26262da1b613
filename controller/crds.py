"""Brings the CRD of NodeInventory to this release's schema, where an older release installed it. Used by `terms`.

Helm installs the CRD with the chart and never touches it again, neither in an upgrade nor with the release. The API
server drops fields that its schema does not have, so what a newer agent states would not arrive. See docs/adr/0011.
"""

import logging
from collections.abc import Mapping
from typing import Any

from api import names, nodeinventory
from api.errors import KubeError
from api.kube import KubeClient, Resource

log = logging.getLogger(__name__)

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
_LEFT = (400, 403, 404, 422)
"""HTTP: an answer that the same request gets again, until somebody does something about it."""


def update_crd(kube: KubeClient) -> bool:
    """Give the stored CRD this release's schema if it is of an older revision; return whether it was.

    One of a newer release is left alone. One that is not there, or not ours to change, is told of and left at that: the
    work goes on with what is stored.

    Raises:
        KubeError: the API server did not answer, or somebody changed the CRD at the same time; try again later.
    """
    wanted = nodeinventory.crd()
    name = wanted["metadata"]["name"]
    remedy = "dra-driver crds | kubectl apply -f -"
    try:
        stored = kube.get(CRDS, name)
        found = _revision(stored)
        if found >= _revision(wanted):
            return False
        kube.replace(CRDS, _updated(stored, wanted))
    except KubeError as error:
        if error.status not in _LEFT:
            raise
        log.warning("cannot update the CRD", extra={"crd": name, "error": str(error), "remedy": remedy})
        return False
    log.info("CRD updated", extra={"crd": name, "from": found, "to": _revision(wanted)})
    return True


def _revision(crd: Mapping[str, Any]) -> int:
    """Return the revision of a CRD; one that says none is older than all that do."""
    text = (crd["metadata"].get("annotations") or {}).get(names.ANNOTATION_CRD_REVISION, "")
    return int(text) if text.isdecimal() else 0


def _updated(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored CRD with all that is ours of it; labels and annotations of others stay."""
    metadata = dict(stored["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), **wanted["metadata"]["annotations"]}
    return {**stored, "metadata": metadata, "spec": {**stored["spec"], **wanted["spec"]}}
