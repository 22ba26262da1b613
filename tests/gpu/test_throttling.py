"""The compute share on a real GPU, by the work that gets done: kernels that each take a known time."""

import json
from typing import TYPE_CHECKING

import pytest

from tests.gpu.conftest import STUB

if TYPE_CHECKING:
    from tests.gpu.conftest import Card

pytestmark = pytest.mark.gpu

LOAD = """
start()
function = spin_kernel()
launch(function, {gpu_ns})
synchronize()
{before}
begin = time.monotonic()
done = 0
while time.monotonic() < begin + {seconds}:
    launch(function, {gpu_ns})
    done += 1
    if done % 8 == 0:
        synchronize()
synchronize()
say(json.dumps(done * {gpu_ns} / 1e7 / (time.monotonic() - begin)))
"""


@pytest.mark.parametrize("gpu_ns", [100_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("cores", [25, 60])
def test_a_fixed_share_gets_its_part_of_an_idle_gpu(cores: int, gpu_ns: int, card: "Card") -> None:
    output = card.run(LOAD.format(before="", seconds=4, gpu_ns=gpu_ns), "--cores", str(cores), "--memory", "2Gi")
    assert json.loads(output) == pytest.approx(cores, abs=3)


def test_a_burst_share_gets_an_idle_gpu(card: "Card") -> None:
    load = LOAD.format(before="", seconds=3, gpu_ns=1_000_000)
    output = card.run(load, "--cores", "25", "--policy", "Burst", "--memory", "2Gi")
    assert json.loads(output) > 85


def test_two_shares_under_load_get_work_done_in_their_proportion(card: "Card") -> None:
    load = LOAD.format(before="say('ready'); wait_for_line()", seconds=4, gpu_ns=500_000)
    with (
        card.start(load, "--cores", "20", "--memory", "2Gi") as small,
        card.start(load, "--cores", "40", "--memory", "2Gi") as large,
    ):
        for program in (small, large):
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in (small, large):
            assert program.stdin is not None
            print(file=program.stdin, flush=True)
        results = [json.loads(program.communicate(timeout=60)[0]) for program in (small, large)]
    assert results[1] / results[0] == pytest.approx(2, rel=0.15)


MOVES = """
start()
size = c_size_t({size})
one, other = alloc(size.value), alloc(size.value)
def move():
    check({call})
move()
synchronize()
begin, done = time.monotonic(), 0
while time.monotonic() < begin + 2:
    move()
    done += 1
    if done % 8 == 0:
        synchronize()
synchronize()
say(json.dumps(done / (time.monotonic() - begin)))
"""
SIZE = 256 << (10 if STUB else 20)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("cuda.cuMemsetD8Async(one, 0, size, None)", id="fills"),
        pytest.param("cuda.cuMemcpyDtoDAsync_v2(one, other, size, None)", id="copies"),
    ],
)
def test_a_share_that_only_moves_bytes_moves_its_part_of_what_the_gpu_does(call: str, card: "Card") -> None:
    program = MOVES.format(call=call, size=SIZE)
    whole, part = (json.loads(card.run(program, "--cores", cores, "--memory", "2Gi")) for cores in ("100", "20"))
    assert part / whole == pytest.approx(0.2, abs=0.05)
