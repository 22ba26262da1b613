"""What a claim gets of what it was allocated, and why it gets nothing: rules that the scheduler does not know.

The node agent keeps them when it prepares a claim; the controller foretells, as soon as a claim has its devices, that
its pod is going to wait on its node for ever.
"""

from collections.abc import Iterable

from api import names
from api.claims import AllocationResult, ClaimView, OpaqueConfig
from api.errors import ClaimError
from api.quantities import format_bytes
from api.vgpuconfig import VGPUConfig, parse_config

_NOTHING_SAID = VGPUConfig(apiVersion="vgpu.dra-driver.io/v1alpha1", kind="VGPUConfig")


def vgpu_config(configs: tuple[OpaqueConfig, ...], request: str, driver: str, where: str) -> VGPUConfig:
    """Return the parameters that hold for a request: field by field, the last config that sets it wins.

    What an administrator wrote into a DeviceClass binds: see `VGPUConfig.within`.

    Args:
        configs: of an allocation (classes first, then the claim), or of a claim's spec.
        request: name of the request, `parent/name` for an alternative.
        driver: our driver name; parameters of others are not ours to read.
        where: names the claim, for messages.

    Raises:
        ConfigError: one of them is not a valid VGPUConfig.
    """
    of_class = class_config(configs, request, driver, where)
    of_claim = [config for config in configs if not config.from_class]
    return _merged(of_claim, request, driver, of_class, where).within(of_class)


def class_config(configs: tuple[OpaqueConfig, ...], request: str, driver: str, where: str) -> VGPUConfig:
    """Return what the DeviceClass of a request says; arguments and errors as for `vgpu_config`."""
    of_class = [config for config in configs if config.from_class]
    return _merged(of_class, request, driver, _NOTHING_SAID, f"{where}: parameters of its DeviceClass")


def _merged(configs: Iterable[OpaqueConfig], request: str, driver: str, found: VGPUConfig, where: str) -> VGPUConfig:
    for config in configs:
        if config.driver == driver and config.applies_to(request):
            given = parse_config(config.parameters, where)
            found = found.model_copy(update=given.model_dump(exclude_unset=True, exclude_none=True))
    return found


def narrowed(
    claim: ClaimView, result: AllocationResult, memory_bytes: int, cores_percent: int
) -> tuple[VGPUConfig, int, int]:
    """Return the parameters of a share, and what it has by them of what was allocated: bytes and guaranteed percent.

    Args:
        claim: with its allocation.
        result: one device of it.
        memory_bytes: allocated.
        cores_percent: allocated; 0: idle time only, of which `cores` says the most.

    Raises:
        ConfigError: the parameters cannot be read.
        ClaimError: they ask for more than was allocated.
    """
    where = f"{claim}: request {result.request}"
    assert claim.allocation is not None
    config = vgpu_config(claim.allocation.configs, result.request, result.driver, str(claim))
    # What a DeviceClass says at most may be more than a claim asks for.
    most = class_config(claim.allocation.configs, result.request, result.driver, str(claim))
    memory = memory_bytes if config.memory is None else config.memory
    if memory > memory_bytes and memory != most.memory:
        raise ClaimError(
            f"{where}: memory: found {format_bytes(memory)}, expected at most the {format_bytes(memory_bytes)} that "
            "were allocated"
        )
    cores = cores_percent if config.cores is None else config.cores
    if cores > cores_percent > 0 and cores != most.cores:
        raise ClaimError(f"{where}: cores: found {cores}, expected at most the {cores_percent} that were allocated")
    return config, min(memory, memory_bytes), min(cores, cores_percent)


def consumed(claim: ClaimView, result: AllocationResult) -> tuple[int, int]:
    """Return the bytes and the guaranteed percent that a claim consumes of a shared device."""
    cores = result.consumed.get(names.CAPACITY_CORES, 0)
    if cores == names.CORES_OF_A_PLACE and not claim.asked(result).get(names.CAPACITY_CORES):
        cores = 0
    return result.consumed.get(names.CAPACITY_MEMORY, 0), cores


def given_whole(claim: ClaimView, result: AllocationResult, device: str, memory_bytes: int) -> tuple[int, int]:
    """Return the bytes and percent that a claim has of a device that was allocated without amounts, to it alone.

    A scheduler without consumable capacity does not see what a claim asks for, but the claim has no more than that: its
    memory rounded up as the device's steps have it, and no guaranteed time unless it asks for some.

    Args:
        claim: with its allocation.
        result: one device of it.
        device: the name of the GPU.
        memory_bytes: what that has.

    Raises:
        ClaimError: the claim asks for more than the device has.
    """
    asked = claim.asked(result)
    if not asked.keys() & {names.CAPACITY_MEMORY, names.CAPACITY_CORES}:
        return memory_bytes, names.CORES_PER_DEVICE
    memory = max(asked.get(names.CAPACITY_MEMORY, memory_bytes), 1)
    cores = asked.get(names.CAPACITY_CORES, 0)
    if memory > memory_bytes or cores > names.CORES_PER_DEVICE:
        raise ClaimError(
            f"{claim}: request {result.request}: found {format_bytes(memory)} of memory and {cores} cores asked "
            f"for, expected at most the {format_bytes(memory_bytes)} and {names.CORES_PER_DEVICE} of "
            f"{device}: the scheduler allocated it without amounts (feature gate DRAConsumableCapacity)"
        )
    return min(memory + -memory % names.MEMORY_STEP_BYTES, memory_bytes), cores
