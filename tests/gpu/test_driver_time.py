"""What libvgpu takes a driver to do with time, looked at without libvgpu; the figures are printed at the end."""

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gpu.conftest import Card, Figures

pytestmark = pytest.mark.gpu

WORK = """
start()
work = function("spin_rounds")
rounds = rounds_for(work, 20_000_000)
alone = min(timed_ns(work, rounds) for _ in range(3))
say(alone)
wait_for_line()
times = [timed_ns(work, rounds) for _ in range(20)]
say(json.dumps(sorted(times)))
"""


def test_events_see_the_neighbours_time_slices(card: "Card", figures: "Figures") -> None:
    with card.start_bare(WORK) as one:
        assert one.stdout is not None
        alone = int(one.stdout.readline())
        with card.start_bare(WORK) as other:
            assert other.stdout is not None
            other.stdout.readline()
            for program in (one, other):
                assert program.stdin is not None
                print(file=program.stdin, flush=True)
            together = json.loads(one.stdout.readline())[10]
    ratio = together / alone
    figures.add("a kernel beside one of another process takes, by its events", "twice its time", f"{ratio:.2f} times")
    assert 1.5 < ratio < 2.5


def test_a_kernel_waits_for_no_copy_over_the_link(card: "Card", figures: "Figures") -> None:
    copy, both = json.loads(
        card.bare("""
start()
size = 64 << 20
pinned, target, streams = c_void_p(), alloc(size), [stream(), stream()]
check(cuda.cuMemAllocHost_v2(byref(pinned), c_size_t(size)))

def between(action):
    begin, ends, times = event(), [event(), event()], []
    synchronize()
    check(cuda.cuEventRecord(begin, None))
    for one in streams:
        check(cuda.cuStreamWaitEvent(one, begin, 0))
    action()
    for end, one in zip(ends, streams):
        check(cuda.cuEventRecord(end, one))
        check(cuda.cuEventSynchronize(end))
        milliseconds = ctypes.c_float()
        check(cuda.cuEventElapsedTime(byref(milliseconds), begin, end))
        times.append(milliseconds.value)
    return max(times)

def copy():
    check(cuda.cuMemcpyHtoDAsync_v2(target, pinned, c_size_t(size), streams[0]))

work = function("spin_rounds")
copy_alone = min(between(copy) for _ in range(3))
rounds = rounds_for(work, int(copy_alone * 1e6))

def both():
    copy()
    launch(work, rounds, streams[1])

say(json.dumps([copy_alone, min(between(both) for _ in range(3))]))
""")
    )
    figures.add("a copy to the device and a kernel as long take", "1 time", f"{both / copy:.2f} times")
    assert both < 1.7 * copy


def test_an_event_of_a_running_kernel_is_not_ready_and_asking_does_not_wait(card: "Card", figures: "Figures") -> None:
    asked, microseconds = json.loads(
        card.bare("""
start()
work, end = function("spin_rounds"), event()
rounds = rounds_for(work, 200_000_000)
synchronize()
launch(work, rounds)
check(cuda.cuEventRecord(end, None))
begin = time.perf_counter()
asked = cuda.cuEventQuery(end)
say(json.dumps([asked, (time.perf_counter() - begin) * 1e6]))
""")
    )
    figures.add("cuEventQuery takes", "a few microseconds", f"{microseconds:.0f} us")
    assert asked == 600
