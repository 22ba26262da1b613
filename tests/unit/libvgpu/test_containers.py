"""Shares as containers have them: several devices, a folder that no environment hides, pid namespaces of their own."""

import os
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import read_books
from libvgpu.stub import StubGPU, create_driver_root, read_card
from tests.unit.libvgpu.parts import check_books

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

MIB = 1 << 20
CARDS = [
    StubGPU(name="Stub A", memory_bytes=1 << 30, uuid="GPU-00000000-0000-4000-8000-00000000000a"),
    StubGPU(name="Stub B", memory_bytes=1 << 30, uuid="GPU-00000000-0000-4000-8000-00000000000b"),
]
namespaces = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")


@pytest.mark.no_sanitizer  # a sanitizer takes the time that is measured
def test_limits_bind_to_the_uuid_of_each_device(machine: "Machine") -> None:
    create_driver_root(machine.root, CARDS)
    # Named so that their folders come in the other order than the devices.
    a_share = machine.share(10 * MIB, name="a-share", device_uuid=CARDS[1].uuid, cores_percent=20)
    b_share = machine.share(30 * MIB, name="b-share", device_uuid=CARDS[0].uuid.upper(), cores_percent=50)
    output = machine.run(f"""
        import time
        first, second = start(0), start(1)
        assert info() == ({10 * MIB}, {10 * MIB}), info()
        assert try_alloc({10 * MIB} + 1)[0] == OUT_OF_MEMORY
        alloc({10 * MIB})
        prop = (c_int * 16)(1, 0, 1, 0)  # on device 0, whichever is current
        check(cuda.cuMemCreate(byref(Pointer()), c_size_t({2 * MIB}), prop, c_ulonglong(0)))
        check(cuda.cuCtxSetCurrent(first))
        assert info() == ({28 * MIB}, {30 * MIB}), info()
        alloc({28 * MIB})
        assert try_alloc(1)[0] == OUT_OF_MEMORY
        functions = []
        for context in (first, second):
            check(cuda.cuCtxSetCurrent(context))
            functions.append(kernel())
        def load(context, function):
            check(cuda.cuCtxSetCurrent(context))
            while time.monotonic() < begin + 1:
                launch(function, 1_000_000)
            synchronize()
        import threading
        threads = [threading.Thread(target=load, args=pair) for pair in zip((first, second), functions)]
        begin = time.monotonic()
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        say(time.monotonic() - begin)
    """)
    cards = [read_card(machine.root / "dev" / f"nvidia{index}") for index in range(2)]
    assert [card.peak_bytes for card in cards] == [30 * MIB, 10 * MIB]
    for card, cores, share in ((cards[0], 50, b_share), (cards[1], 20, a_share)):
        check_books(card.gpu_time_ns, cores, float(output), share)


def _unshared(machine: "Machine", options: list[str], script: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["unshare", *options, "sh", "-c", script], env=machine.environment(), stdin=pipe, stdout=pipe, text=True
    )


def _program(code: str) -> str:
    quoted = ("from gpu import *\n" + textwrap.dedent(code)).replace("'", "'\\''")
    return f"exec {sys.executable} -c '{quoted}'"


@namespaces
def test_the_folder_of_the_container_wins_over_the_environment(machine: "Machine") -> None:
    inside = machine.share(10 * MIB, container="inside")
    machine.share(900 * MIB, container="main")  # what a tenant might point the environment at
    mounts = f"mount -t tmpfs none /run && mkdir -p /run/vgpu/shares/s && mount --bind {inside} /run/vgpu/shares/s && "
    program = _unshared(machine, ["-m"], mounts + _program(f"start(); assert info()[1] == {10 * MIB}, info()"))
    with program:
        program.communicate(timeout=60)
    assert program.returncode == 0


@namespaces
def test_containers_with_pid_namespaces_of_their_own_share_one_claim(machine: "Machine") -> None:
    share = machine.share(100 * MIB)
    hold = _program(f"start(); alloc({44 * MIB}); import os; say(os.getpid()); wait_for_line()")
    options = ["-p", "-f", "--kill-child"]
    with _unshared(machine, options, hold) as one, _unshared(machine, options, hold) as two:
        for holder in (one, two):
            assert holder.stdout is not None
            assert holder.stdout.readline() == "1\n"  # both are process 1 where they live
        assert [process.pid for process in read_books(share).processes] == [1, 1]
        # Nobody is taken for dead because of his pid...
        machine.run(f"start(); assert try_alloc({14 * MIB})[0] == OUT_OF_MEMORY; alloc({12 * MIB})")
        assert read_books(share).used_bytes == 88 * MIB
        # ...and who dies is found dead from any namespace.
        one.kill()
        assert one.stdout is not None
        assert one.stdout.read() == ""  # until the process has ended too, which unshare leaves to the kernel
        one.wait()
        machine.run(f"start(); alloc({56 * MIB})")
        two.communicate("\n", timeout=60)
    assert read_books(share).used_bytes == 0
