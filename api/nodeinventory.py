"""NodeInventory: plain facts about the devices of a node, stated by its node agent and read by the controller.

Cluster-scoped and named after the node. The agent writes `status` only; it decides nothing. The CRD is generated from
the models here, so that the schema that the API server checks and the one that Python checks are one.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from api import names
from api.errors import StateError
from api.offerrules import Order

CRD_REVISION = 1
"""Of the CRD: raised by one with each release that changes it, so that a controller knows an older one."""


class _Model(BaseModel):
    # Unknown fields are kept out, not refused: an older controller reads what a newer agent wrote.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class DeviceFacts(_Model):
    """One device, as its driver describes it."""

    name: Annotated[str, Field(description="Name in ResourceSlices, made from the UUID.")]
    uuid: Annotated[str, Field(description="UUID as the driver gives it, such as GPU-5c1f....")]
    vendor: Annotated[str, Field(description="Vendor in lower case, such as nvidia.")]
    product_name: Annotated[str, Field(description="Model as the driver names it.")]
    memory_bytes: Annotated[
        int, Field(ge=0, description="Memory of the whole device in bytes.", json_schema_extra={"format": "int64"})
    ]
    index: Annotated[int, Field(ge=0, description="Index in the driver's own order; it may change at a reboot.")]
    type: Annotated[str, Field(description="gpu for a whole GPU, mig for a static MIG device.")] = names.DEVICE_TYPE_GPU
    profile: Annotated[str, Field(description="Profile of a MIG device, such as 1g.10gb.")] = ""
    parent_uuid: Annotated[
        str, Field(description="UUID of the GPU that a MIG device is a part of.", alias="parentUUID")
    ] = ""
    architecture: Annotated[str, Field(description="Architecture, such as Hopper.")] = ""
    compute_capability: Annotated[str, Field(description="CUDA compute capability, such as 9.0.")] = ""
    driver_version: Annotated[str, Field(description="Version of the kernel driver.")] = ""
    runtime_version: Annotated[
        str, Field(description="Highest CUDA version that the driver supports, such as 13.0.")
    ] = ""
    pci_bus_id: Annotated[str, Field(description="PCI address, such as 0000:65:00.0.")] = ""
    pcie_root: Annotated[str, Field(description="PCIe root complex, such as pci0000:64.")] = ""
    numa_node: Annotated[int | None, Field(description="NUMA node; absent where the platform has none.")] = None
    link_island: Annotated[
        str, Field(description="Equal for devices of a node that reach each other over NVLink; empty: not known.")
    ] = ""
    mig_capable: Annotated[bool | None, Field(description="The hardware can divide it; absent: not known.")] = None
    healthy: Annotated[bool, Field(description="False: keep new claims away; health says why.")] = True
    shareable: Annotated[bool, Field(description="False: not offered in fractions; health says why.")] = True
    offered: Annotated[
        bool, Field(description="False: not offered in any form, such as a device that is held back; health says why.")
    ] = True
    health: Annotated[str, Field(description="Why the device is not healthy, not shareable or not offered.")] = ""
    remap_pending: Annotated[
        bool | None,
        Field(description="Rows of its memory are remapped at the next reset: due when the device is idle."),
    ] = None
    pages_pending: Annotated[
        bool | None,
        Field(description="Pages of its memory are retired at the next reset: due when the device is idle."),
    ] = None


class InventorySpec(_Model):
    """What an operator wishes for a node; it goes before the controller's rules."""

    cordoned_devices: Annotated[
        list[str], Field(description="Names or UUIDs of devices that new claims must stay away from.")
    ] = Field(default_factory=list)
    order: Annotated[Order | None, Field(description="Order in which the scheduler tries the GPUs of the node.")] = None
    memory_scaling: Annotated[
        float | None, Field(ge=0.01, le=10, description="Memory offered, as a part of what is there, such as 1.5.")
    ] = None
    cores_scaling: Annotated[
        float | None, Field(ge=0.01, le=10, description="Cores offered, as a part of what is there.")
    ] = None


class OfferedRoom(_Model):
    """What the controller offers of a device where that is more than the device has."""

    device: Annotated[str, Field(description="Name of the device.")]
    memory_bytes: Annotated[
        int, Field(ge=0, description="Memory of all shares together.", json_schema_extra={"format": "int64"})
    ]
    cores: Annotated[int, Field(ge=0, description="Cores of all shares together, in percent of the device.")]


class FollowedClaim(_Model):
    """A claim of the node that is worth a look when it changes."""

    uid: Annotated[str, Field(description="UID of the ResourceClaim.")]
    digest: Annotated[str, Field(description="Of its annotation and its pods: another digest is worth another look.")]


def _with_zone(moment: datetime) -> datetime:
    """Return a time that others can be held against: the API server takes one without a zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class InventoryStatus(_Model):
    """What the agent saw last, and what the controller tells it."""

    node_uid: Annotated[
        str,
        Field(
            description="UID of the Node object; slices are owned by it. The controller empties it where the Node is "
            "another by now: the agent looks again.",
            alias="nodeUID",
        ),
    ]
    driver_name: Annotated[str, Field(description="Driver name that the agent registered with the kubelet.")]
    agent_version: Annotated[str, Field(description="Version of the node agent.")] = ""
    heartbeat_time: Annotated[
        datetime,
        AfterValidator(_with_zone),
        Field(description="When the agent was last alive; renewed while it runs."),
    ]
    devices: Annotated[list[DeviceFacts], Field(description="Devices in the driver's order.")] = Field(
        default_factory=list
    )
    message: Annotated[
        str, Field(description="What keeps the agent from seeing all devices; empty if nothing does.")
    ] = ""
    offers: Annotated[
        list[OfferedRoom] | None,
        Field(description="Devices of which more is offered than they have. Written by the controller, not the agent."),
    ] = None
    offer_mode: Annotated[
        str | None, Field(description="How the devices are offered. Written by the controller, not the agent.")
    ] = None
    followed_claims: Annotated[
        list[FollowedClaim] | None,
        Field(
            description="Claims of the node that are annotated, or that other pods use than the one they were made "
            "for. Written by the controller; absent: nobody tells, and the agent asks for each claim from time to time."
        ),
    ] = None


class NodeInventory(_Model):
    """The object as a whole; `status` is None until the agent has looked for the first time."""

    node_name: str
    resource_version: str
    status: InventoryStatus | None
    spec: InventorySpec = Field(default_factory=InventorySpec)
    problem: str = ""
    """What is wrong with the spec: the fields that it names count as if they were not there."""

    @classmethod
    def from_object(cls, inventory: Mapping[str, Any]) -> "NodeInventory":
        """Read a NodeInventory as the API server sent it.

        A wish of the operator's that cannot be read hides no fact: it is left out, and `problem` says so.

        Raises:
            StateError: names the object, each field of its status, what was found and what is wrong with it.
        """
        metadata = inventory.get("metadata", {})
        name = metadata.get("name", "")
        try:
            status = InventoryStatus.model_validate(inventory["status"]) if inventory.get("status") else None
        except ValidationError as error:
            raise StateError(_problem(f"NodeInventory {name}: status", error)) from error
        spec, problem = _readable(f"NodeInventory {name}: spec", inventory.get("spec") or {})
        return cls(
            node_name=name,
            resource_version=metadata.get("resourceVersion", ""),
            status=status,
            spec=spec,
            problem=problem,
        )


def _readable(what: str, spec: Mapping[str, Any]) -> tuple[InventorySpec, str]:
    """Return what can be read of a spec, and what is wrong with the rest."""
    try:
        return InventorySpec.model_validate(spec), ""
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
        rest = {key: value for key, value in spec.items() if key not in wrong}
        return InventorySpec.model_validate(rest), _problem(what, error)


def _problem(what: str, error: ValidationError) -> str:
    return "\n".join(
        f"{what}.{'.'.join(map(str, problem['loc']))}: found {problem['input']!r}, {_expected(problem['msg'])}"
        for problem in error.errors()
    )


def _expected(message: str) -> str:
    """Return pydantic's words ("Input should be greater than 0") as ours."""
    prefix = "Input should be "
    return f"expected {message.removeprefix(prefix)}" if message.startswith(prefix) else f"expected: {message}"


def to_object(node_name: str, status: InventoryStatus | None = None) -> dict[str, Any]:
    """Return the JSON object of a node's inventory."""
    inventory: dict[str, Any] = {
        "apiVersion": names.GROUP_VERSION,
        "kind": names.NODE_INVENTORY_KIND,
        "metadata": {"name": node_name},
        "spec": {},
    }
    if status is not None:
        inventory["status"] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return inventory


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of NodeInventory (apiextensions.k8s.io/v1)."""
    columns = [
        ("Model", "string", ".status.devices[0].productName", "Model of the first device"),
        ("Driver", "string", ".status.devices[0].driverVersion", "Version of the kernel driver"),
        ("Heartbeat", "date", ".status.heartbeatTime", "When the agent was last alive"),
        ("Message", "string", ".status.message", "What keeps the agent from seeing all devices"),
        ("Age", "date", ".metadata.creationTimestamp", "Age of the object"),
    ]
    schema = {
        "type": "object",
        "description": "Facts about the devices of a node, stated by the node agent.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(InventorySpec.model_json_schema(by_alias=True)),
            "status": _structural(InventoryStatus.model_json_schema(by_alias=True)),
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.NODE_INVENTORY_PLURAL}.{names.API_GROUP}",
            "annotations": {names.ANNOTATION_CRD_REVISION: str(CRD_REVISION)},
        },
        "spec": {
            "group": names.API_GROUP,
            "scope": "Cluster",
            "names": {
                "kind": names.NODE_INVENTORY_KIND,
                "listKind": f"{names.NODE_INVENTORY_KIND}List",
                "plural": names.NODE_INVENTORY_PLURAL,
                "singular": "nodeinventory",
                "shortNames": ["vgpuinv"],
                "categories": ["vgpu"],
            },
            "versions": [
                {
                    "name": names.API_VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text}
                        for name, kind, path, text in columns
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _structural(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn a JSON schema of pydantic into a structural one: no references, no titles, nullable by absence."""
    definitions = schema.get("$defs", {})

    def convert(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return convert(definitions[node["$ref"].rpartition("/")[2]])
        if "anyOf" in node:
            (kind,) = [option for option in node["anyOf"] if option.get("type") != "null"]
            return convert({**{key: value for key, value in node.items() if key not in {"anyOf", "default"}}, **kind})
        kept = {key: value for key, value in node.items() if key not in {"$defs", "title", "default"}}
        if "properties" in kept:
            kept["properties"] = {name: convert(child) for name, child in kept["properties"].items()}
        if "items" in kept:
            kept["items"] = convert(kept["items"])
        if kept.get("minimum", 0) % 1:  # the API server compares whole numbers with its whole part alone
            kept.update(minimum=int(kept["minimum"]), exclusiveMinimum=True)
        return kept

    return convert(schema)
