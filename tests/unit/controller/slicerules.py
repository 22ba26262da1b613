"""What an API server wants of ResourceSlices, for tests: one violation and it refuses all of a slice.

Source: k8s.io/api/resource/v1 (limits), KEP-4381, KEP-4815, KEP-5055, KEP-5075 and the validation of resource.k8s.io.
"""

import re
from collections.abc import Iterator, Sequence

from api.quantities import MAX_BYTES, parse_count
from api.slices import Capacity, Device, Version
from controller.offers.offering import SliceContent

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", re.ASCII)


def violations(slices: Sequence[SliceContent]) -> list[str]:
    """Return what an API server would say to the slices of a pool."""
    names = [device.name for content in slices for device in content.devices]
    sets = {counters.name for content in slices for counters in content.counter_sets}
    found = [f"{name}: twice" for name in set(names) if names.count(name) > 1]
    for content in slices:
        advanced = any(device.taints or device.consumes for device in content.devices)
        if len(content.devices) > (64 if advanced else 128):
            found.append(f"{len(content.devices)} devices")
        for device in content.devices:
            found += [f"{device.name}: {problem}" for problem in _device(device, sets)]
    return found


def _device(device: Device, sets: set[str]) -> Iterator[str]:
    if not _LABEL.fullmatch(device.name):
        yield "name"
    if len(device.attributes) + len(device.capacity) > 32:
        yield "too many attributes"
    for name, value in device.attributes.items():
        text = value.text if isinstance(value, Version) else value
        if isinstance(text, str) and not 0 < len(text.encode()) <= 64:
            yield f"{name}: {len(text.encode())} bytes"
        if isinstance(value, Version) and not _SEMVER.fullmatch(value.text):
            yield f"{name}: version {value.text}"
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            yield f"{name}: {value}"
    for name, capacity in device.capacity.items():
        yield from (f"{name}: {problem}" for problem in _capacity(capacity, shared=device.allow_multiple))
    for drawn in device.consumes:
        if drawn.name not in sets:
            yield f"draws on {drawn.name}, which is not there"


def _capacity(capacity: Capacity, *, shared: bool) -> Iterator[str]:
    value = parse_count(capacity.value, "value")
    if value > MAX_BYTES:
        yield f"value {value}"
    if capacity.default is None:
        return
    if not shared:
        yield "a policy on a device that is not shared"
    default = parse_count(capacity.default, "default")
    if capacity.valid_range is not None:
        limits = capacity.valid_range
        least, most, step = (parse_count(text, "range") for text in (limits.minimum, limits.maximum, limits.step))
        if not least <= default <= most <= value:
            yield f"{least} <= {default} <= {most} <= {value}"
        if (default - least) % step or (most - least) % step or least + step > value:
            yield f"step {step} from {least} to {most}, default {default}, of {value}"
    elif capacity.default not in capacity.valid_values:
        yield f"default {default}, expected one of {capacity.valid_values}"
