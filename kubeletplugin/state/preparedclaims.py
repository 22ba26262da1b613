"""Claims as the agent has prepared them: what the kubelet was told and what the shares were given.

Made by preparing, kept by the ledger (one JSON file per claim), read by unpreparing and by the monitor.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import to_json

from api.errors import StateError
from api.names import ClaimUID, DeviceName
from api.vgpuconfig import Policy
from libvgpu.shares import Limits

_POLICIES = frozenset(policy.value for policy in Policy)
_BOUNDS = {"memory_bytes": "memoryBytes", "cores_percent": "coresPercent", "priority": "priority"}
_VERSION = 1
"""Of the JSON. Fields are only ever added, and unknown ones are kept, so that releases can go back and forth."""


@dataclass(frozen=True)
class Bounds:
    """The most that a claim can have by what its DeviceClass says; None: nothing is said."""

    memory_bytes: int | None = None
    cores_percent: int | None = None
    priority: int | None = None


@dataclass(frozen=True)
class Held:
    """What a claim was allocated of a device: the most that its share can be given while it lives."""

    memory_bytes: int
    cores_percent: int
    whole: bool = False
    """All of the device is the claim's, and there is nothing to enforce: the share counts, but needs no library."""
    most: Bounds = Bounds()
    """What whoever writes the claim cannot go above."""


@dataclass(frozen=True)
class PreparedDevice:
    """One result of a claim's allocation."""

    index: int
    """Place in the allocation's results."""
    request: str
    """Empty in a record that was rebuilt from the share alone."""
    pool: str
    device: DeviceName
    share_id: str | None = None
    limits: Limits | None = None
    """None: no share; an adminAccess request gets the device as it is, and a MIG device has limits of its own."""
    held: Held | None = None
    """None: nothing (adminAccess), or not known (recorded by an older release)."""
    unknown_policy: str | None = None
    """A policy that only a newer release knows: its limits file stays as it is, and `limits` count it as Fixed."""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of another release."""

    @property
    def is_part(self) -> bool:
        """Whether it is a part that the hardware made, held by its claim alone."""
        return self.limits is None and self.held is not None

    def holds(self) -> Held:
        """Return what its share can have at most."""
        if self.held is not None or self.limits is None:
            return self.held or Held(0, 0)
        return Held(self.limits.memory_bytes, self.limits.cores_percent)


@dataclass(frozen=True)
class PreparedClaim:
    """A claim with all that is needed to answer for it, and to undo it, without the API server."""

    uid: ClaimUID
    namespace: str
    name: str
    devices: tuple[PreparedDevice, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of another release."""
    pods: tuple[str, ...] = ()
    """UIDs of the pods that could use it when it was read last; more may come to a claim that is not of one."""

    def __str__(self) -> str:
        return f"ResourceClaim {self.namespace}/{self.name}" if self.name else f"claim {self.uid}"

    @property
    def is_complete(self) -> bool:
        """False for a record that was rebuilt from what lay on the node: good to count and undo, not to answer with."""
        return bool(self.name) and all(device.request for device in self.devices)

    @property
    def is_of_newer_release(self) -> bool:
        """Whether it says something about a share that this release cannot enforce, and so must not write anew."""
        return any(device.unknown_policy is not None for device in self.devices)

    @property
    def needs_no_library(self) -> bool:
        """Whether nothing has to be enforced on any share."""
        return all(device.holds().whole for device in self.devices if device.limits is not None)

    @property
    def shows_use(self) -> bool:
        """Whether books tell if a process uses it: not of what is given without the library."""
        return all(device.limits is not None and not device.holds().whole for device in self.devices)

    @property
    def observes(self) -> bool:
        """Whether it gives access to a device beside its shares (adminAccess)."""
        return any(device.limits is None and device.held is None for device in self.devices)

    @functools.cached_property
    def shared_devices(self) -> frozenset[str]:
        """UUIDs of the devices of its shares. Kept: each claim that is planned is held against all others."""
        return frozenset(limits.device_uuid for limits in self.shares())

    @functools.cached_property
    def record(self) -> bytes:
        """The JSON that `decode` reads."""
        return to_json(
            {
                **self.extra,
                "version": _VERSION,
                "uid": self.uid,
                "namespace": self.namespace,
                "name": self.name,
                "devices": [_encode_device(device) for device in self.devices],
                **({"pods": list(self.pods)} if self.pods else {}),
            }
        )

    def shares(self) -> Iterator[Limits]:
        """Yield the limits of each share."""
        return (device.limits for device in self.devices if device.limits is not None)

    def keeping_extra_of(self, former: "PreparedClaim | None") -> "PreparedClaim":
        """Return this claim with the fields that another release had added to its former record."""
        if former is None:
            return self
        extras = {device.index: device.extra for device in former.devices}
        devices = tuple(replace(device, extra=extras.get(device.index, {})) for device in self.devices)
        return replace(self, devices=devices, extra=former.extra)


def decode(content: bytes, uid: ClaimUID, where: str) -> PreparedClaim:
    """Read the JSON of a record, of this release or another.

    Args:
        content: of the file.
        uid: of the claim that the file is named after.
        where: names the file, for the message.

    Raises:
        StateError: truncated, damaged, or not such a record.
    """
    try:
        fields = dict(json.loads(content))
        fields.pop("version")
        if fields.pop("uid") != uid:
            raise ValueError("the uid of another claim")  # noqa: TRY301 - translated below like all that can be wrong
        return PreparedClaim(
            uid=uid,
            namespace=_text(fields.pop("namespace")),
            name=_text(fields.pop("name")),
            devices=tuple(_decode_device(dict(device)) for device in fields.pop("devices")),
            pods=tuple(_text(pod_uid) for pod_uid in fields.pop("pods", ())),
            extra=fields,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{where}: found {error!r}, expected the record of a prepared claim") from error


def _encode_device(device: PreparedDevice) -> dict[str, Any]:
    extra = dict(device.extra)
    extra_of_limits = extra.pop("limits", {})
    fields: dict[str, Any] = {
        **extra,
        "index": device.index,
        "request": device.request,
        "pool": device.pool,
        "device": device.device,
    }
    if device.share_id is not None:
        fields["shareID"] = device.share_id
    if device.limits is not None:
        fields["limits"] = extra_of_limits | _encode_limits(device.limits)
        if device.unknown_policy is not None:
            fields["limits"]["policy"] = device.unknown_policy
    if device.held is not None:
        fields["held"] = _encode_held(device.held)
    return fields


def _decode_device(fields: dict[str, Any]) -> PreparedDevice:
    limits = fields.pop("limits", None)
    share_id = fields.pop("shareID", None)
    held = fields.pop("held", None)
    return PreparedDevice(
        index=_number(fields.pop("index")),
        request=_text(fields.pop("request")),
        pool=_text(fields.pop("pool")),
        device=DeviceName(_text(fields.pop("device"))),
        share_id=None if share_id is None else _text(share_id),
        limits=None if limits is None else _decode_limits(limits),
        held=None if held is None else _decode_held(held),
        unknown_policy=None if limits is None else _unknown_policy(limits),
        extra={**fields, "limits": limits} if limits is not None else fields,
    )


def _encode_held(held: Held) -> dict[str, Any]:
    whole = {"whole": True} if held.whole else {}
    said = {field: getattr(held.most, name) for name, field in _BOUNDS.items()}
    most = {field: value for field, value in said.items() if value is not None}
    fields = {"memoryBytes": held.memory_bytes, "coresPercent": held.cores_percent, **whole}
    return fields | ({"most": most} if most else {})


def _decode_held(fields: Mapping[str, Any]) -> Held:
    said = dict(fields.get("most", {}))
    most = Bounds(**{name: _number(said[field]) for name, field in _BOUNDS.items() if field in said})
    whole = fields.get("whole", False) is True
    return Held(_number(fields["memoryBytes"]), _number(fields["coresPercent"]), whole, most)


def _encode_limits(limits: Limits) -> dict[str, Any]:
    return {
        "share": limits.share,
        "deviceUUID": limits.device_uuid,
        "memoryBytes": limits.memory_bytes,
        "coresPercent": limits.cores_percent,
        "ceilingPercent": limits.ceiling_percent,
        "policy": limits.policy.value,
        "priority": limits.priority,
        "killOveruse": limits.kill_overuse,
        "oversubscribe": limits.oversubscribe,
        "hostMemoryBytes": limits.host_memory_bytes,
    }


def _decode_limits(fields: Mapping[str, Any]) -> Limits:
    return Limits(
        share=_text(fields["share"]),
        device_uuid=_text(fields["deviceUUID"]),
        memory_bytes=_number(fields["memoryBytes"]),
        cores_percent=_number(fields["coresPercent"]),
        ceiling_percent=_number(fields["ceilingPercent"]),
        policy=Policy.FIXED if _unknown_policy(fields) is not None else Policy(fields["policy"]),
        priority=_number(fields.get("priority", 0)),
        kill_overuse=fields.get("killOveruse", False) is True,
        oversubscribe=fields.get("oversubscribe", False) is True,
        host_memory_bytes=_number(fields.get("hostMemoryBytes", 0)),
    )


def _unknown_policy(fields: Mapping[str, Any]) -> str | None:
    policy = _text(fields["policy"])
    return None if policy in _POLICIES else policy


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value
