"""The engine of a simulated card: who has it, for how long, and that the card's own count is right."""

import signal

import pytest

from libvgpu.stub import change_settings
from tests.unit.stub.conftest import Machine, MakeMachine, wait_until

MS = 1_000_000
GATE = """
    import threading
    gpu = Driver()
    spin = gpu.kernel("spin")
    gate, gated = threading.Event(), gpu.create("cuStreamCreate", c_uint(1))
    holding = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: gate.wait() and None)

    def is_done(query, what):
        try:
            query(what)
        except CudaError as error:
            assert error.code == 600
            return False
        return True

    def events():
        return [gpu.create("cuEventCreate", c_uint(0)) for _ in range(2)]

    def passed_ms(start, end):
        elapsed = c_float()
        gpu.cuEventSynchronize(end)
        gpu.cuEventElapsedTime(byref(elapsed), start, end)
        return elapsed.value

    gpu.cuLaunchHostFunc(gated, holding, None)
"""
"""A stream in which nothing runs before gate.set(): all that is queued in it by then runs without a gap."""


def test_a_kernel_takes_its_time_and_is_counted_to_the_nanosecond(machine: Machine) -> None:
    said = machine.run(
        GATE
        + """
    start, end = events()
    gpu.launch(spin, 1_000_000, gated)
    gpu.cuEventRecord(start, gated)
    gpu.launch(spin, 20_000_000, gated)
    gpu.cuEventRecord(end, gated)
    there = is_done(gpu.cuEventQuery, end)
    began = time.monotonic_ns()
    gate.set()
    event_ms = passed_ms(start, end)
    say(there=there, took_ms=(time.monotonic_ns() - began) / 1e6, event_ms=event_ms)
    """
    )
    assert not said["there"]  # launching does not wait for the kernel
    assert said["took_ms"] >= 20.9
    assert said["event_ms"] == pytest.approx(20.0, abs=0.001)
    assert machine.card().processes[0].gpu_time_ns == 21 * MS
    assert machine.card().processes[0].launches == 2


def test_a_plain_kernel_takes_time_by_the_size_of_its_grid(machine: Machine) -> None:
    machine.run("""
        gpu = Driver()
        fill = gpu.kernel("fill")
        gpu.launch(fill, blocks=132)
        gpu.launch(fill, blocks=133)
        gpu.cuCtxSynchronize()
        say(done=True)
    """)
    assert machine.card().gpu_time_ns == 2_000 + 3_000


def test_processes_share_the_engine_evenly_whatever_the_length_of_their_kernels(make_machine: MakeMachine) -> None:
    # Two have all of their work queued, 200 ms of it and 400 ms, before a third one begins to share the engine.
    machine = make_machine(slice_ns=3_600_000_000_000)
    third = machine.start("gpu = Driver(); gpu.launch(gpu.kernel('spin'), 3_600_000_000_000); wait_for_line()")
    wait_until(lambda: machine.card().gpu_time_ns > 0)
    queue = """
        gpu = Driver()
        spin = gpu.kernel("spin")
        start, end = (gpu.create("cuEventCreate", c_uint(0)) for _ in range(2))
        gpu.launch(spin, 1_000)
        gpu.cuEventRecord(start, None)
        for _ in range({count}):
            gpu.launch(spin, {kernel_ns})
        gpu.cuEventRecord(end, None)
        elapsed = c_float()
        say(queued=True)
        gpu.cuEventSynchronize(end)
        gpu.cuEventElapsedTime(byref(elapsed), start, end)
        say(took_ms=elapsed.value)
        wait_for_line()
    """
    short = machine.start(queue.format(count=200, kernel_ns=MS))
    long = machine.start(queue.format(count=4, kernel_ns=100 * MS))
    for process in (short, long):
        process.heard()
    wait_until(lambda: machine.card().engine_waiters == 2)
    change_settings(machine.card_file(), slice_ns=2 * MS)
    wait_until(lambda: all(process.gpu_time_ns > 0 for process in machine.card().processes))
    third.kill()
    took_ms = {process.popen.pid: process.heard()["took_ms"] for process in (short, long)}
    counted = {process.pid: process.gpu_time_ns for process in machine.card().processes}
    assert counted[short.popen.pid] == 200 * MS + 1_000
    assert counted[long.popen.pid] == 400 * MS + 1_000
    # By the engine's time: as long as the short one had work, the long one had no more and no less of it.
    assert took_ms[short.popen.pid] >= 390
    assert took_ms[long.popen.pid] - took_ms[short.popen.pid] == pytest.approx(200, abs=10)


def test_an_idle_engine_is_used_at_once(machine: Machine) -> None:
    idle = machine.start("gpu = Driver(); gpu.launch(gpu.kernel('spin'), 1000); say(there=True); wait_for_line()")
    idle.heard()
    said = machine.run(
        GATE
        + """
    start, end = events()
    gpu.cuEventRecord(start, gated)
    gpu.launch(spin, 100_000_000, gated)
    gpu.cuEventRecord(end, gated)
    gate.set()
    say(took_ms=passed_ms(start, end))
    """
    )
    assert said["took_ms"] == pytest.approx(100, abs=0.001)
    idle.go_on()


def test_a_process_killed_in_the_middle_of_its_kernel_does_not_hold_up_the_card(machine: Machine) -> None:
    victim = machine.start("""
        gpu = Driver()
        gpu.launch(gpu.kernel("spin"), 3_600_000_000_000)
        say(running=True)
        wait_for_line()
    """)
    victim.heard()
    waiting = machine.start("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        gpu.launch(spin, 1_000_000)
        gpu.cuCtxSynchronize()
        say(shared=True)
        wait_for_line()
        for _ in range(20):
            gpu.launch(spin, 1_000_000)
        gpu.cuCtxSynchronize()
        say(done=True)
    """)
    waiting.heard()
    victim.kill()
    waiting.go_on()
    assert waiting.heard() == {"done": True}  # and not in an hour
    assert not any(process.alive for process in machine.card().processes if process.pid == victim.popen.pid)


def test_streams_run_in_order_and_the_default_stream_waits_for_them(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        order = []
        Callback = ctypes.CFUNCTYPE(None, c_void_p)
        note = Callback(lambda data: order.append(data))
        blocking, free = (gpu.create("cuStreamCreate", c_uint(flags)) for flags in (0, 1))
        gpu.launch(spin, 20_000_000, blocking)
        gpu.cuLaunchHostFunc(blocking, note, c_void_p(1))
        gpu.cuLaunchHostFunc(None, note, c_void_p(2))
        gpu.cuLaunchHostFunc(blocking, note, c_void_p(3))
        gpu.cuLaunchHostFunc(free, note, c_void_p(9))
        gpu.cuCtxSynchronize()
        say(order=[one for one in order if one != 9], free=9 in order)
    """)
    assert said == {"order": [1, 2, 3], "free": True}


def test_a_stream_waits_for_an_event_of_another(machine: Machine) -> None:
    said = machine.run(
        GATE
        + """
    other, event = gpu.create("cuStreamCreate", c_uint(1)), gpu.create("cuEventCreate", c_uint(2))
    gpu.cuEventRecord(event, gated)
    gpu.cuStreamWaitEvent(other, event, c_uint(0))
    data = gpu.alloc(4)
    gpu.cuMemsetD32Async(data, c_uint(5), 1, other)
    done = is_done(gpu.cuStreamQuery, other)
    gate.set()
    gpu.cuStreamSynchronize(other)
    say(done=done, value=gpu.read(data, 4)[0])
    """
    )
    assert said == {"done": False, "value": 5}


def test_a_stream_takes_1024_launches_before_the_caller_waits(machine: Machine) -> None:
    said = machine.run(
        GATE
        + """
    launched, full = [], threading.Event()

    def launch_on():
        gpu.cuCtxSetCurrent(gpu.context)
        for _ in range(1023):  # beside what holds the stream
            gpu.launch(spin, 1_000, gated)
        full.set()
        gpu.launch(spin, 1_000, gated)
        launched.append(True)

    thread = threading.Thread(target=launch_on)
    thread.start()
    full.wait()
    thread.join(0.1)  # nothing to wait for: it must not return
    waits = not launched
    gate.set()
    thread.join()
    say(waits=waits, launched=len(launched))
    """
    )
    assert said == {"waits": True, "launched": 1}


def test_a_stopped_process_does_not_hold_up_the_card(machine: Machine) -> None:
    frozen = machine.start("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        for _ in range(200):
            gpu.launch(spin, 10_000_000)
        say(running=True)
        gpu.cuCtxSynchronize()
        say(done=True)
    """)
    frozen.heard()
    frozen.popen.send_signal(signal.SIGSTOP)
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        for _ in range(10):
            gpu.launch(spin, 1_000_000)
        gpu.cuCtxSynchronize()
        say(done=True)
    """)
    assert said == {"done": True}  # while the other one still stands
    frozen.popen.send_signal(signal.SIGCONT)
    assert frozen.heard() == {"done": True}
    counted = {process.pid: process.gpu_time_ns for process in machine.card().processes}
    assert counted[frozen.popen.pid] == 2000 * MS
