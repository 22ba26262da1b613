"""The compute share, checked against the time for which the simulated card says each process had its engine."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from libvgpu.shares import Policy, read_books, read_limits, update_limits
from libvgpu.stub import StubGPU, create_driver_root, read_card
from tests.unit.libvgpu.conftest import READY, finish, go_on, heard
from tests.unit.libvgpu.parts import check_books, check_part, used_ns

if TYPE_CHECKING:
    from tests.unit.libvgpu.conftest import Machine

LOAD = """
import time
start()
function, begin = kernel(), time.monotonic()
while time.monotonic() < begin + {seconds}:
    launch(function, {gpu_ns})
    {after}
synchronize()
say(time.monotonic() - begin)
"""


def _load(seconds: float = 1, gpu_ns: int = 1_000_000, after: str = "") -> str:
    return LOAD.format(seconds=seconds, gpu_ns=gpu_ns, after=after)


@pytest.mark.parametrize(("cores", "gpu_ns"), [(25, 1_000_000), (10, 20_000), (70, 300_000)])
def test_a_fixed_share_is_capped_on_an_idle_gpu(cores: int, gpu_ns: int, machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=cores)
    check_part(machine, cores, float(machine.run(_load(2, gpu_ns))), share)
    (process,) = read_card(machine.card).processes
    assert read_books(share).launches == process.launches


def test_two_shares_under_load_get_25_and_40_percent(machine: "Machine") -> None:
    cores = {"a": 25, "b": 40}
    shares = {name: machine.share(1 << 30, container=name, cores_percent=percent) for name, percent in cores.items()}
    programs = {name: machine.start(_load(2), container=name) for name in cores}
    seconds = {name: float(finish(program)) for name, program in programs.items()}
    times = {process.pid: process.gpu_time_ns for process in read_card(machine.card).processes}
    for name, percent in cores.items():
        check_books(times[programs[name].pid], percent, seconds[name], shares[name])


def test_processes_of_one_share_divide_it(machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=30)
    programs = [machine.start(READY + _load(gpu_ns=500_000)) for _ in range(3)]
    for program in programs:
        assert heard(program) == "ready"
    for program in programs:
        go_on(program)
    seconds = max(float(finish(program)) for program in programs)
    check_part(machine, 30, seconds, share, waiting=3)


@pytest.mark.no_sanitizer  # a sanitizer takes the time that is measured
def test_a_burst_share_takes_an_idle_gpu(machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=10, ceiling_percent=100, policy=Policy.BURST)
    seconds = float(machine.run(_load(1, 20_000_000, "synchronize()")))
    assert read_books(share).throttled_ns / 1e9 < 0.3 * seconds  # of nine tenths with what it is guaranteed
    assert read_books(share).gpu_time_ns == pytest.approx(used_ns(machine.card), rel=0.1)


def test_a_burst_share_falls_back_to_what_the_agent_grants(machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=10, ceiling_percent=100, policy=Policy.BURST, granted_percent=20)
    check_part(machine, 20, float(machine.run(_load())), share)


def test_a_grant_that_the_agent_has_not_repeated_for_ten_seconds_is_the_guarantee_again(machine: "Machine") -> None:
    said_ns = time.monotonic_ns() - 11_000_000_000
    share = machine.share(
        cores_percent=20, ceiling_percent=100, policy=Policy.BURST, granted_percent=97, steered_at_ns=said_ns
    )
    check_part(machine, 20, float(machine.run(_load())), share)


def test_the_agent_can_correct_what_is_charged(machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=20)
    with machine.start(READY + _load()) as program:
        assert heard(program) == "ready"
        steered_at_ns = time.monotonic_ns()
        update_limits(share, replace(read_limits(share), charge_permille=500, steered_at_ns=steered_at_ns))
        go_on(program)
        seconds = float(finish(program))
    used, charged = used_ns(machine.card), read_books(share).gpu_time_ns
    check_books(used // 2, 20, seconds, share)
    assert charged < 0.75 * used


def test_a_correction_that_the_agent_has_not_repeated_for_ten_seconds_does_not_count(machine: "Machine") -> None:
    said_ns = time.monotonic_ns() - 11_000_000_000
    share = machine.share(1 << 30, cores_percent=20, charge_permille=100, steered_at_ns=said_ns)
    check_part(machine, 20, float(machine.run(_load())), share)


@pytest.mark.parametrize("lengths", ["200_000, 1_800_000", "50_000, 350_000"])
def test_work_that_takes_turns_long_and_short_is_held_to_the_share(lengths: str, machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=20)
    code = f"""
        import itertools, time
        start()
        lengths = itertools.cycle(({lengths}))
        function, begin = kernel(), time.monotonic()
        while time.monotonic() < begin + 1:
            launch(function, next(lengths))
        synchronize()
        say(time.monotonic() - begin)
    """
    check_part(machine, 20, float(machine.run(code)), share)


def test_two_shares_of_one_gpu_in_a_container_add_up_their_cores(machine: "Machine") -> None:
    shares = [machine.share(1 << 30, name=name, cores_percent=cores) for name, cores in (("first", 10), ("second", 20))]
    check_part(machine, 30, float(machine.run(_load())), *shares)


def test_launches_wait_while_the_share_is_suspended(machine: "Machine") -> None:
    share = machine.share(1 << 30)
    program = machine.start("""
        import time
        start()
        function = kernel()
        launch(function, 1000)
        synchronize()
        say("ready")
        wait_for_line()
        begin = time.monotonic()
        alloc(1 << 20)  # memory is not denied
        say("launching")
        launch(function, 1000)
        say(time.monotonic() - begin)
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        update_limits(share, replace(read_limits(share), suspended=True))
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "launching\n"
        time.sleep(0.3)  # nothing to wait for: the program must not do anything
        update_limits(share, replace(read_limits(share), suspended=False))
        waited_s = float(program.stdout.readline())
        program.communicate(timeout=60)
    assert waited_s >= 0.3
    assert read_books(share).throttled_ns > 0.2e9


LAUNCHES = {
    "cuLaunchKernel_ptsz": "cuda.cuLaunchKernel_ptsz(function, *ones, c_uint(0), None, params, None)",
    "cuLaunchKernelEx": "cuda.cuLaunchKernelEx(config, function, params, None)",
    "cuLaunchKernelEx_ptsz": "cuda.cuLaunchKernelEx_ptsz(config, function, params, None)",
    "cuLaunchCooperativeKernel": "cuda.cuLaunchCooperativeKernel(function, *ones, c_uint(0), None, params)",
    "cuLaunchCooperativeKernel_ptsz": "cuda.cuLaunchCooperativeKernel_ptsz(function, *ones, c_uint(0), None, params)",
    "cuLaunchCooperativeKernelMultiDevice": "cuda.cuLaunchCooperativeKernelMultiDevice(entry, 1, 0)",
    "cuLaunch": "cuda.cuLaunch(function)",
    "cuLaunchGrid": "cuda.cuLaunchGrid(function, 1, 1)",
    "cuLaunchGridAsync": "cuda.cuLaunchGridAsync(function, 1, 1, stream)",
    "cuGraphLaunch": "cuda.cuGraphLaunch(graph_exec, None)",
    "cuGraphLaunch_ptsz": "cuda.cuGraphLaunch_ptsz(graph_exec, None)",
}


@pytest.mark.parametrize("function", LAUNCHES)
def test_every_way_to_launch_is_held_to_the_share(function: str, machine: "Machine") -> None:
    share = machine.share(1 << 30, cores_percent=25)
    code = f"""
        import time
        start()
        function = kernel()
        argument = c_ulonglong(1_000_000)
        params = (c_void_p * 1)(ctypes.addressof(argument))
        ones = (c_uint(1),) * 6
        config = (c_ulonglong * 8)(1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1)
        stream, graph, graph_exec = c_void_p(), c_void_p(), c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))
        entry = (c_ulonglong * 7)(function.value, 1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1, 0, stream.value,
                                  ctypes.addressof(params))
        check(cuda.cuFuncSetBlockShape(function, 1, 1, 1))
        check(cuda.cuParamSetv(function, 0, byref(argument), 8))
        check(cuda.cuParamSetSize(function, 8))
        check(cuda.cuStreamBeginCapture_v2(stream, 1))
        launch(function, 1_000_000, stream)
        check(cuda.cuStreamEndCapture(stream, byref(graph)))
        check(cuda.cuGraphInstantiateWithFlags(byref(graph_exec), graph, c_ulonglong(0)))
        begin = time.monotonic()
        while time.monotonic() < begin + 1:
            check({LAUNCHES[function]})
        synchronize()
        say(time.monotonic() - begin)
    """
    check_part(machine, 25, float(machine.run(code)), share)


def test_launches_of_threads_that_end_are_in_the_books(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    machine.run("""
        import threading
        context = start()
        function = kernel()

        def work():
            check(cuda.cuCtxSetCurrent(context))
            for _ in range(37):
                launch(function, 1_000)

        for _ in range(10):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    """)
    assert read_books(share).launches == 370


def test_a_cooperative_launch_on_two_devices_is_paid_on_each(machine: "Machine") -> None:
    uuids = [f"GPU-00000000-0000-4000-8000-00000000000{number}" for number in range(1, 3)]
    create_driver_root(machine.root, [StubGPU("Stub", 1 << 30, uuid) for uuid in uuids])
    first, second = (machine.share(name=uuid, cores_percent=50, device_uuid=uuid) for uuid in uuids)
    machine.run("""
        argument = c_ulonglong(4_000_000)  # long against the time between two calls of the driver
        params = (c_void_p * 1)(ctypes.addressof(argument))
        entries = (c_ulonglong * 14)()
        for device in range(2):
            start(device)
            function, stream = kernel(), c_void_p()
            check(cuda.cuStreamCreate(byref(stream), 1))
            entries[7 * device : 7 * device + 7] = (
                function.value, 1 << 32 | 1, 1 << 32 | 1, 1 << 32 | 1, 0, stream.value, ctypes.addressof(params)
            )
        for _ in range(21):
            check(cuda.cuLaunchCooperativeKernelMultiDevice(entries, 2, 0))
            for device in range(2):
                check(cuda.cuStreamSynchronize(c_void_p(entries[7 * device + 5])))
    """)
    for share in (first, second):
        assert read_books(share).gpu_time_ns == pytest.approx(84e6, rel=0.3)  # both, and not one for two
        assert read_books(share).launches == 21


def test_many_kernels_that_nobody_knows_yet_are_not_held_up(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    output = machine.run("""
        import time
        start()
        functions = [kernel(f"spin{i}") for i in range(100)]  # more than can be measured at once
        begin = time.monotonic()
        for _ in range(3):
            for function in functions:
                launch(function, 200_000)
        synchronize()
        say(time.monotonic() - begin)
    """)
    assert float(output) < 20  # 60 ms of work; a wait for each of them would take minutes
    # What comes between the two events around a launch counts too: on a busy machine, other processes.
    assert 55e6 < read_books(share).gpu_time_ns < 180e6


def test_new_kernels_behind_a_blocked_stream_are_charged_for_what_they_take(machine: "Machine") -> None:
    share = machine.share(cores_percent=25)
    machine.run("""
        import ctypes, threading
        start()
        function, stream, go = kernel(), c_void_p(), threading.Event()
        check(cuda.cuStreamCreate(byref(stream), 1))
        callback = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: go.wait())
        check(cuda.cuLaunchHostFunc(stream, callback, None))
        for _ in range(3):
            launch(function, 1_000_000, stream)
        go.set()
        synchronize()
        launch(function, 1_000_000, stream)
        synchronize()
    """)
    assert read_books(share).gpu_time_ns == pytest.approx(4e6, rel=0.2)


@pytest.mark.parametrize(
    "end",
    [
        "check(cuda.cuStreamDestroy_v2(stream))",
        "check(cuda.cuCtxDestroy_v2(context)); start()",
        "check(cuda.cuStreamEndCapture(stream, byref(graph))); cuda.cuStreamEndCapture(stream, byref(graph))",
    ],
)
def test_captures_that_end_in_odd_ways_do_not_end_the_limit(end: str, machine: "Machine") -> None:
    share = machine.share(cores_percent=20)
    code = f"""
        import time
        context, stream, graph = c_void_p(), c_void_p(), c_void_p()
        start()
        check(cuda.cuCtxCreate_v2(byref(context), 0, 0))
        check(cuda.cuStreamCreate(byref(stream), 1))
        check(cuda.cuStreamBeginCapture_v2(stream, 2))
        {end}
        function, begin = kernel(), time.monotonic()
        while time.monotonic() < begin + 1:
            launch(function, 1_000_000)
        synchronize()
        say(time.monotonic() - begin)
    """
    check_part(machine, 20, float(machine.run(code)), share)


def test_launches_into_a_capture_cost_nothing_after_an_end_without_a_beginning(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    machine.run("""
        start()
        function, stream, graph = kernel(), c_void_p(), c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))
        assert cuda.cuStreamEndCapture(stream, byref(graph)) == 401
        launch(function, 1_000_000, stream)
        synchronize()
        check(cuda.cuStreamBeginCapture_v2(stream, 0))
        for _ in range(600):
            launch(function, 1_000_000, stream)
        check(cuda.cuStreamEndCapture(stream, byref(graph)))
    """)
    assert read_books(share).launches == 1


@pytest.mark.no_sanitizer
def test_a_new_graph_with_the_handle_of_an_old_one_is_charged_for_what_it_takes(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    output = machine.run("""
        start()
        function, stream = kernel(), c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))

        def graph_of(gpu_ns):
            graph, graph_exec = c_void_p(), c_void_p()
            check(cuda.cuStreamBeginCapture_v2(stream, 1))
            launch(function, gpu_ns, stream)
            check(cuda.cuStreamEndCapture(stream, byref(graph)))
            check(cuda.cuGraphInstantiateWithFlags(byref(graph_exec), graph, c_ulonglong(0)))
            return graph_exec

        old = graph_of(1_000)
        for _ in range(20):
            check(cuda.cuGraphLaunch(old, stream))
        synchronize()
        check(cuda.cuGraphExecDestroy(old))
        new = graph_of(2_000_000)
        for _ in range(50):
            check(cuda.cuGraphLaunch(new, stream))
        synchronize()
        say(old.value == new.value)
    """)
    assert output == "True\n"  # else this tests nothing
    assert read_books(share).gpu_time_ns == pytest.approx(100e6, rel=0.1)


@pytest.mark.no_sanitizer  # the stub is interrupted too, and allocates
def test_launches_and_copies_of_a_signal_handler_that_interrupts_the_driver_are_charged(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    machine.run("""
        import ctypes, signal, threading
        start()
        known, new = kernel(), kernel("spin_new")
        to, source, size = alloc(4096), alloc(4096), c_size_t(4096)
        for _ in range(10):
            launch(known, 1_000_000)
            check(cuda.cuMemcpyAsync(to, source, size, None))
        synchronize()
        libc = ctypes.CDLL(None)

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def handler(number):
            launch(known, 1_000_000)
            launch(new, 1_000_000)
            check(cuda.cuMemcpyAsync(to, source, size, None))

        libc.signal.argtypes = [ctypes.c_int, ctypes.CFUNCTYPE(None, ctypes.c_int)]
        libc.signal(signal.SIGUSR1, handler)
        Action = ctypes.CFUNCTYPE(None)

        class Between(ctypes.Structure):
            _fields_ = [("function", ctypes.c_char_p), ("before", Action), ("after", Action)]

        @Action
        def interrupt():
            between.function = None
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

        between = Between.in_dll(cuda, "vgpu_stub_between")
        between.before = interrupt
        for _ in range(5):
            launch(known, 1_000_000)
            between.function = b"cuCtxSynchronize"
            synchronize()
            assert between.function is None
        synchronize()
    """)
    books = read_books(share)
    assert books.launches == 40  # with 15 copies
    assert sum(process.launches for process in read_card(machine.card).processes) == 25


def test_an_updated_graph_is_charged_for_what_it_takes_now(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    machine.run("""
        start()
        function, stream = kernel(), c_void_p()
        check(cuda.cuStreamCreate(byref(stream), 1))

        def graph_of(gpu_ns):
            graph = c_void_p()
            check(cuda.cuStreamBeginCapture_v2(stream, 1))
            launch(function, gpu_ns, stream)
            check(cuda.cuStreamEndCapture(stream, byref(graph)))
            return graph

        graph_exec, info = c_void_p(), (c_ulonglong * 8)()
        check(cuda.cuGraphInstantiateWithFlags(byref(graph_exec), graph_of(1_000), c_ulonglong(0)))
        for _ in range(20):
            check(cuda.cuGraphLaunch(graph_exec, stream))
        synchronize()
        check(cuda.cuGraphExecUpdate_v2(graph_exec, graph_of(2_000_000), info))
        for _ in range(50):
            check(cuda.cuGraphLaunch(graph_exec, stream))
        synchronize()
    """)
    assert read_books(share).gpu_time_ns == pytest.approx(100e6, rel=0.1)


ENDLESS = """
import threading
start()
function, ended = kernel(), threading.Event()
threading.Thread(target=lambda: (wait_for_line(), ended.set())).start()
say("ready")
while not ended.is_set():
    launch(function, 1_000_000)
synchronize()
"""


def _launches(machine: "Machine") -> int:
    return sum(process.launches for process in read_card(machine.card).processes)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_share_under_load_stops_while_it_is_suspended_and_goes_on_after(machine: "Machine") -> None:
    share = machine.share(cores_percent=50)
    with machine.start(ENDLESS) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        _wait_until(lambda: _launches(machine) > 20)
        for _ in range(2):
            update_limits(share, replace(read_limits(share), suspended=True))
            before = -1
            while before != (before := _launches(machine)):  # what is on its way still comes
                time.sleep(0.1)
            assert read_card(machine.card).processes
            time.sleep(0.3)  # nothing to wait for: the program must not do anything
            assert _launches(machine) <= before + 1  # one may have looked before it was suspended
            update_limits(share, replace(read_limits(share), suspended=False))
            _wait_until(lambda before=before: _launches(machine) > before + 20)  # type: ignore[misc]
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert read_books(share).launches == _launches(machine)


def test_a_share_that_is_changed_under_load_gets_what_it_has_now(machine: "Machine") -> None:
    share = machine.share(1 << 20, cores_percent=5)
    with machine.start(ENDLESS) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        _wait_until(lambda: _launches(machine) > 20)
        figures = []
        for cores in (5, 50):
            update_limits(share, replace(read_limits(share), cores_percent=cores, ceiling_percent=cores))
            time.sleep(0.1)
            begin, before = time.monotonic(), read_books(share)
            time.sleep(1)
            after, seconds = read_books(share), time.monotonic() - begin
            charged_ns, held_up_ns = (
                getattr(after, name) - getattr(before, name) for name in ("gpu_time_ns", "throttled_ns")
            )
            figures.append((charged_ns / seconds / 1e7, 100 * charged_ns / held_up_ns))
        program.communicate("\n", timeout=60)
    (had, _), (had_then, of_waiting) = figures
    assert had < 8
    assert had_then < 55
    assert of_waiting > 35  # what it was charged while it was held up: a busy machine may not let it ask for its part


def test_throttled_time_is_what_launches_waited(machine: "Machine") -> None:
    share = machine.share(cores_percent=20)
    elapsed_s = float(
        machine.run("""
            import time
            start()
            function = kernel()
            begin = time.monotonic()
            for _ in range(40):
                launch(function, 5_000_000)
            synchronize()
            say(time.monotonic() - begin)
        """)
    )
    assert 0.2 < read_books(share).throttled_ns / 1e9 < elapsed_s  # 0.2 s of work in a fifth of the time
