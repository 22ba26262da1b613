"""A tenant that holds leases on its files: whoever opens such a file waits for it, and the agent must not."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api.errors import StateError
from api.kubefake import FakeKube
from dra_driver.cli import main
from kubeletplugin.agent import NodeAgent
from kubeletplugin.hardware.devices import DeviceFile, Driver
from kubeletplugin.hardware.driverroots import DriverRoot
from kubeletplugin.hardware.keptfiles import KeptFiles
from kubeletplugin.state.libraries import install_library, remove_old_libraries
from libvgpu import leases
from libvgpu.shares import change_limits, is_in_use, read_books, read_limits
from tests.unit.kubeletplugin.builders import add_claim, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError, Ref

HOLDER = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
descriptor = os.open(sys.argv[1], os.O_RDONLY)
end_s = time.monotonic() + float(sys.argv[3])
while True:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, getattr(fcntl, sys.argv[2]))
    except OSError as error:
        if time.monotonic() > end_s:
            print(error.strerror, flush=True)
            break
        time.sleep(0.001)  # somebody has it open, and no event tells when no more
    else:
        print("held", flush=True)
        sys.stdin.read()
        break
"""


@contextlib.contextmanager
def lease(path: Path, kind: str, patience_s: float = 60.0) -> Iterator[str]:
    """Hold a lease as a process of a container can, if the kernel grants it; what it says.

    The kernel grants none while somebody has the file open, as the agent's threads have it now and then for a moment.
    """
    command = [sys.executable, "-c", HOLDER, str(path), kind, str(patience_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    while leases._broken:
        os.close(leases._broken.popitem()[0])


@pytest.fixture
def claim(served: FakeKubelet, client: FakeKube) -> Ref:
    claim = add_claim(client, "train", result(gpu(0)))
    served.prepare(claim)
    return claim


@pytest.fixture
def share(claim: Ref, root: Path) -> Path:
    return root / "state/shares" / f"{claim.uid}-0"


def _wait_until_kept(path: Path) -> None:
    while str(path) not in leases._broken.values():
        assert not threading.Event().wait(0.001)


def test_limits_that_are_held_up_are_told_and_changed_as_soon_as_they_can_be(share: Path) -> None:
    with lease(share / "limits", "F_RDLCK") as said:
        assert said == "held"
        with pytest.raises(StateError) as caught:
            change_limits(share, lambda limits: replace(limits, suspended=True))
        assert str(caught.value) == (
            f"{share}/limits: found a lease that a process of the share holds on it, expected none: it ends in a minute"
        )
    _wait_until_kept(share / "limits")

    with lease(share / "limits", "F_RDLCK", patience_s=0) as said:
        assert said == "Resource temporarily unavailable"  # for good: the file is open
        change_limits(share, lambda limits: replace(limits, suspended=True))
    assert read_limits(share).suspended


def test_a_running_share_keeps_its_files_when_it_is_prepared_again_under_a_lease(
    served: FakeKubelet, claim: Ref, share: Path
) -> None:
    before = [(share / name).stat().st_ino for name in ("limits", "books")]
    change_limits(share, lambda limits: replace(limits, memory_bytes=limits.memory_bytes // 2))  # to be mended

    with lease(share / "limits", "F_RDLCK"), pytest.raises(PrepareError, match="found a lease that a process"):
        served.prepare(claim)

    _wait_until_kept(share / "limits")
    served.prepare(claim)
    assert [(share / name).stat().st_ino for name in ("limits", "books")] == before
    assert read_limits(share).memory_bytes == 2 << 30


def test_books_that_are_held_up_count_as_in_use_and_keep_nobody_waiting(share: Path) -> None:
    with lease(share / "books", "F_WRLCK") as said:
        assert said == "held"
        assert is_in_use(share)
        with pytest.raises(StateError, match="books: found Resource temporarily unavailable"):
            read_books(share)
    _wait_until_kept(share / "books")
    assert not is_in_use(share)
    assert read_books(share).used_bytes == 0


def test_a_lease_keeps_no_claim_from_being_undone(served: FakeKubelet, claim: Ref, share: Path) -> None:
    with lease(share / "limits", "F_RDLCK"), lease(share / "books", "F_WRLCK"):
        assert served.unprepare(claim) == {claim.uid: ""}
        assert not share.exists()


def test_what_was_held_up_once_is_given_back_with_its_share(
    served: FakeKubelet, claim: Ref, share: Path, client: FakeKube
) -> None:
    other = add_claim(client, "other", result(gpu(1)))
    served.prepare(other)
    _hold_up(share)
    served.unprepare(claim)

    _hold_up(share.parent / f"{other.uid}-0")

    assert list(leases._broken.values()) == [f"{share.parent / other.uid}-0/limits"]


def _hold_up(share: Path) -> None:
    with lease(share / "limits", "F_RDLCK"), pytest.raises(StateError):
        change_limits(share, lambda limits: replace(limits, priority=limits.priority + 1))
    _wait_until_kept(share / "limits")


def test_an_operator_at_the_node_waits_for_the_end_of_a_lease(share: Path, claim: Ref, root: Path) -> None:
    with lease(share / "limits", "F_RDLCK"):
        done: list[int] = []
        command = ["share", "suspend", claim.uid, "--state-dir", str(root / "state")]
        operator = threading.Thread(target=lambda: done.append(main(command)))
        operator.start()
        operator.join(0.1)
        assert not done
    operator.join()
    assert done == [0]
    assert read_limits(share).suspended


def test_leases_hold_up_neither_monitor_nor_steering(
    start_agent: Callable[..., NodeAgent], kubelet: FakeKubelet, client: FakeKube, root: Path
) -> None:
    registry = CollectorRegistry()
    agent = start_agent(registry=registry, monitor_interval_s=0.01, steering_interval_s=0.01)
    kubelet.register()
    claims = [add_claim(client, name, result(gpu(number))) for number, name in enumerate(("train", "later"))]
    kubelet.prepare(claims[0])
    share = root / "state/shares" / f"{claims[0].uid}-0"
    with lease(share / "limits", "F_WRLCK"), lease(share / "books", "F_WRLCK"):
        kubelet.prepare(claims[1])
        labels = {"share": f"{claims[1].uid}-0", "namespace": "default", "claim": "later", "device": gpu(1).uuid}
        while registry.get_sample_value("vgpu_share_memory_limit_bytes", labels) is None:
            assert not threading.Event().wait(0.001)
        assert agent.alive() == ""


@pytest.mark.parametrize("hook", [b"", b"#!/bin/sh\n"])
def test_no_tenant_gets_a_lease_on_what_all_containers_have(tmp_path: Path, hook: bytes) -> None:
    """With one on the file that names the library, each start of a program in other containers would take 45 s."""
    source, folder = tmp_path / "libvgpu.so", tmp_path / "lib"
    (tmp_path / "gate").mkdir()
    if hook:
        (tmp_path / "gate/merge").write_bytes(hook)
    source.write_bytes(b"of the agent before")
    before = install_library(source, folder).path.name
    source.write_bytes(b"ours")
    library = install_library(source, folder)

    for path in sorted(folder.iterdir()):
        with lease(path, "F_WRLCK", patience_s=0) as said:
            assert said == "Resource temporarily unavailable"
    assert {path.name for path in folder.iterdir()} >= {before, f"{before}.preload", f"{library.path.name}.preload"}


@pytest.fixture
def driver_files(tmp_path: Path) -> Iterator[tuple[KeptFiles, Driver, list[Path]]]:
    """Return what keeps the files of a driver on the host, that driver, and the files."""
    names = ("libcuda.so.570.1", "nvidia-smi", "gsp.bin")
    for name in names:
        (tmp_path / name).touch()
    device = DeviceFile(Path("/dev/nvidiactl"), Path("/dev/nvidiactl"), is_device=True)
    files = (*(DeviceFile(Path("/") / name, Path("/usr/lib64") / name) for name in names[:2]), device)
    kept = KeptFiles(DriverRoot(tmp_path, Path("/")))
    yield kept, Driver(files, {"mounts": [{"hostPath": "/gsp.bin"}]}), [tmp_path / name for name in names]
    kept.close()


def test_no_tenant_gets_a_lease_on_the_drivers_files(driver_files: tuple[KeptFiles, Driver, list[Path]]) -> None:
    kept, driver, paths = driver_files
    kept.keep(driver)
    paths[0].unlink()  # the driver is replaced
    paths[0].touch()
    kept.keep(driver)

    for path in paths:
        with lease(path, "F_WRLCK", patience_s=0) as said:
            assert said == "Resource temporarily unavailable"


def test_a_drivers_file_that_is_held_up_already_is_kept_once_its_lease_ends(
    driver_files: tuple[KeptFiles, Driver, list[Path]],
) -> None:
    kept, driver, (library, *_) = driver_files
    with lease(library, "F_WRLCK") as said:
        assert said == "held"
        kept.keep(driver)  # waits for nobody
        (waiter,) = (thread for thread in threading.enumerate() if thread.name == "lease")
    waiter.join()
    with lease(library, "F_WRLCK", patience_s=0) as said:
        assert said == "Resource temporarily unavailable"


def test_files_of_a_driver_container_are_left_alone(driver_files: tuple[KeptFiles, Driver, list[Path]]) -> None:
    _, driver, (library, *_) = driver_files
    KeptFiles(DriverRoot(library.parent, Path("/run/nvidia/driver"))).keep(driver)
    with lease(library, "F_WRLCK") as said:
        assert said == "held"


def test_a_build_is_kept_by_the_agent_that_gives_it_to_containers(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate/merge").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "libvgpu.so").write_bytes(b"of the agent beside us")
    beside = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")
    os.utime(beside.path, (0, 0))
    (tmp_path / "libvgpu.so").write_bytes(b"ours")
    current = install_library(tmp_path / "libvgpu.so", tmp_path / "lib")

    assert beside.hook is not None
    assert remove_old_libraries(current, set()) == []
