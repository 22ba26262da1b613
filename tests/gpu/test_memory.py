"""The memory limit against a real driver's own count."""

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gpu.conftest import Card

pytestmark = pytest.mark.gpu

MIB = 1 << 20
LIMIT = 2048 * MIB
SLACK = 256 * MIB
"""What the node agent lets pass: contexts and the like are sized by the driver."""


def test_a_share_is_refused_at_its_limit_and_the_driver_agrees(card: "Card") -> None:
    before = card.look()
    with card.start(
        """
        start()
        total = info()[1]
        got = 0
        while try_alloc(64 << 20)[0] == SUCCESS:
            got += 64
        say(json.dumps([total, got, info()[0]]))
        wait_for_line()
        """,
        "--memory",
        "2Gi",
    ) as program:
        assert program.stdout is not None
        total, got, left = json.loads(program.stdout.readline())
        during = card.look()
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert total == LIMIT
    assert got * MIB <= LIMIT
    assert left < 64 * MIB
    assert during["used"] - before["used"] <= LIMIT + SLACK
    assert during["used"] - before["used"] >= got * MIB


def test_what_is_freed_can_be_had_again_and_work_goes_on_after_a_refusal(card: "Card") -> None:
    output = card.run(
        """
        start()
        function = spin_kernel()
        first, room = alloc(64 << 20), info()[0]
        for _ in range(20):
            blocks = []
            while True:
                result, pointer = try_alloc(64 << 20)
                if result != SUCCESS:
                    break
                blocks.append(pointer)
            assert result == OUT_OF_MEMORY, result
            launch(function, 1000)
            synchronize()
            for pointer in blocks:
                free(pointer)
        say(room - info()[0])
        """,
        "--memory",
        "2Gi",
    )
    assert abs(int(output)) <= 2 * MIB  # granules that the driver itself keeps


ALLOCATORS = {
    "cuMemAlloc": "r, _ = try_alloc(SIZE)",
    "cuMemAllocManaged": "r = cuda.cuMemAllocManaged(byref(Pointer()), c_size_t(SIZE), 1)",
    "cuMemAllocAsync": "r = cuda.cuMemAllocAsync(byref(Pointer()), c_size_t(SIZE), None)",
    "cuMemCreate": ("r = cuda.cuMemCreate(byref(Pointer()), c_size_t(SIZE), (c_int * 16)(1, 0, 1, 0), c_ulonglong(0))"),
    "cuArrayCreate": (
        "r = cuda.cuArrayCreate_v2(byref(c_void_p()), (c_ulonglong * 3)(65536, SIZE // 65536, 0x0100000001))"
    ),
    "by cuGetProcAddress": (
        "found = c_void_p(); "
        "check(cuda.cuGetProcAddress_v2(b'cuMemAlloc', byref(found), 12000, c_ulonglong(0), None)); "
        "r = ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(found.value)(ctypes.addressof(Pointer()), SIZE)"
    ),
}


@pytest.mark.parametrize("function", ALLOCATORS)
def test_every_allocator_is_refused_above_the_limit(function: str, card: "Card") -> None:
    output = card.run(f"start(); SIZE = 3 << 30; {ALLOCATORS[function]}; say(r)", "--memory", "2Gi")
    assert output == "2\n"


def test_a_killed_process_gives_its_memory_back_to_its_share(card: "Card") -> None:
    share = ("--memory", "2Gi", "--share", "together")
    code = "start(); alloc(1200 << 20); import os; say(os.getpid()); wait_for_line()"
    with card.start("start(); say('there'); wait_for_line(); say(try_alloc(1200 << 20)[0])", *share) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with card.start(code, *share) as holder:
            assert holder.stdout is not None
            pid = int(holder.stdout.readline())
            os.kill(pid, signal.SIGKILL)
            holder.communicate(timeout=60)
        output, _ = other.communicate("\n", timeout=60)
    assert output == "0\n"
