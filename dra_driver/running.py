"""`dra-driver run`: a command on this machine inside a share, without a cluster.

Same limits file, same library, same books as in a pod; only the way in differs: LD_PRELOAD and VGPU_SHARES_DIR stand
for the mounts that CDI makes in a container. Called by the CLI. Whoever runs a command can also run it without the
share: this is a tool for trying things out, not a wall.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from api import names
from api.errors import ConfigError, StateError
from api.quantities import format_bytes
from api.vgpuconfig import Policy
from kubeletplugin.hardware.devices import Device
from kubeletplugin.hardware.gputimes import GpuTimeSource
from kubeletplugin.hardware.patienttimes import PatientTimes
from kubeletplugin.monitoring.owners import BookOwners
from kubeletplugin.monitoring.steering import Steering
from libvgpu.files import locked
from libvgpu.paths import library_path
from libvgpu.shares import Limits, create_share, read_limits

_LOCK = "lock"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class ShareRequest:
    """What the command line asks for; None: not given."""

    memory_bytes: int | None = None
    cores_percent: int | None = None
    policy: Policy | None = None


def runtime_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the shares of `run` live: a folder of this user that a reboot empties."""
    if given := environment.get(names.ENV_RUNTIME_DIR):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/dra-driver-vgpu/run")
    base = environment.get("XDG_RUNTIME_DIR")
    return Path(base) / "dra-driver-vgpu" if base else Path(tempfile.gettempdir()) / f"dra-driver-vgpu-{os.geteuid()}"


def choose_device(devices: Sequence[Device], wanted: str) -> Device:
    """Return the device with an index or UUID (upper or lower case).

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    for device in devices:
        if wanted == str(device.index) or wanted.lower() == device.uuid.lower():
            return device
    there = ", ".join(f"{d.index} = {d.uuid} ({d.product_name})" for d in devices) or "none"
    raise ConfigError(f"--device: found {wanted!r}, expected the index or UUID of one of: {there}")


def plan_limits(name: str, request: ShareRequest, device: Device) -> Limits:
    """Return the limits of a new share of a device.

    Raises:
        ConfigError: more memory than the device has, or a policy that the cores do not allow.
    """
    total = device.memory_bytes
    memory = total if request.memory_bytes is None else request.memory_bytes
    if memory > total:
        raise ConfigError(
            f"--memory: found {format_bytes(memory)}, expected at most {format_bytes(total)} of {device.uuid}"
        )
    if request.cores_percent is None and request.policy is Policy.FIXED:
        raise ConfigError("--policy: found Fixed without --cores, expected --cores with it: the cap that it fixes")
    cores = request.cores_percent or 0
    policy = request.policy or (Policy.FIXED if cores else Policy.BURST)
    return Limits(
        share=name,
        device_uuid=device.uuid,
        memory_bytes=memory,
        cores_percent=cores,
        ceiling_percent=cores if policy is Policy.FIXED else names.CORES_PER_DEVICE,
        policy=policy,
    )


@dataclass(frozen=True)
class OpenShare:
    """A share in use: its state folder, and the lock that says so; the command inherits the lock."""

    folder: Path
    lock: int


@contextlib.contextmanager
def open_share(base: Path, name: str, request: ShareRequest, device: Device) -> Iterator[OpenShare]:
    """Create or join a share for as long as the context lasts. Whoever comes after its last process removes it.

    Raises:
        ConfigError: the share exists with other limits than asked for.
    """
    folder = base / name
    directory = folder / names.SHARES_SUBDIR / name
    limits = plan_limits(name, request, device)
    _make(base)
    with locked(base):
        for other in base.iterdir():
            _remove_unused(other)
        if directory.exists():
            _check_joining(read_limits(directory), limits, request)
        else:
            create_share(directory, limits)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield OpenShare(folder, lock)
    finally:
        os.close(lock)
        with locked(base):
            _remove_unused(folder)


def share_environment(
    folder: Path, device_uuid: str, driver_root: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a command inside a share."""
    result = dict(environment)
    result[names.ENV_SHARES_DIR] = str(folder / names.SHARES_SUBDIR)
    result["LD_PRELOAD"] = _joined([str(library_path())], environment.get("LD_PRELOAD"))
    result["CUDA_VISIBLE_DEVICES"] = device_uuid
    if driver_root != Path("/"):
        libraries = [str(path) for path in driver_root.glob("usr/lib/*-linux-gnu")] + [str(driver_root / "usr/lib64")]
        result["LD_LIBRARY_PATH"] = _joined(libraries, environment.get("LD_LIBRARY_PATH"))
        result["PATH"] = _joined([str(driver_root / "usr/bin")], environment.get("PATH"))
        result[names.ENV_STUB_DEVICE_DIR] = str(driver_root / "dev")
    return result


@contextlib.contextmanager
def steered(base: Path, name: str, times: GpuTimeSource) -> Iterator[None]:
    """Steer a share as the node agent does on a node, as long as the context lasts.

    Shares of other commands in the same folder count as its neighbours.
    """

    def folders() -> dict[str, Path]:
        return {one.name: one for one in base.glob(f"*/{names.SHARES_SUBDIR}/*")}

    stopping = threading.Event()
    patient = PatientTimes(times)
    steering = Steering(folders, patient, BookOwners(folders), frozenset({name}))
    thread = threading.Thread(target=steering.run, args=(stopping,), name="steering", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        patient.close()


def run_command(command: Sequence[str], environment: Mapping[str, str], lock: int) -> int:
    """Run a command that holds a lock to its end; pass signals on; return its exit status, 128+n if signal n ended it.

    Raises:
        ConfigError: there is no such program, or it cannot be run.
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise ConfigError(f"command: found {command[0]!r}, expected a program on the PATH or its path")
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if started:
            started[0].send_signal(number)
        else:
            early.append(number)

    # First of all: a signal that ends us while the command starts would leave it behind.
    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        process = subprocess.Popen([program, *command[1:]], env=dict(environment), pass_fds=(lock,))
        started.append(process)
        for number in early:
            process.send_signal(number)
        status = process.wait()
    except OSError as error:
        raise ConfigError(f"command: {program}: {error.strerror}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _joined(first: list[str], rest: str | None) -> str:
    return os.pathsep.join([*first, *([rest] if rest else [])])


def _check_joining(found: Limits, planned: Limits, request: ShareRequest) -> None:
    """Refuse flags that contradict the share that there is; flags that are not given join it as it is."""
    given = {
        "--memory": request.memory_bytes is not None,
        "--cores": request.cores_percent is not None,
        "--policy": request.policy is not None,
        "--device": True,
    }
    before, wanted = _as_flags(found), _as_flags(planned)
    for flag, is_given in given.items():
        if is_given and wanted[flag] != before[flag]:
            raise ConfigError(
                f"{flag}: found {wanted[flag]}, but share {found.share} exists with {before[flag]}: "
                "expected the same, or another --share"
            )


def _as_flags(limits: Limits) -> dict[str, str]:
    return {
        "--memory": format_bytes(limits.memory_bytes),
        "--cores": str(limits.cores_percent),
        "--policy": limits.policy.value,
        "--device": limits.device_uuid,
    }


def _make(base: Path) -> None:
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise StateError(f"{base}: found {error.strerror}, expected a folder of this user") from error


def _remove_unused(folder: Path) -> None:
    """Remove a share that no command holds; the commands of a `run` that was killed hold the lock by themselves."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
