"""The engine of a simulated card: who has it, for how long, and that the card's own count is right."""

import signal

import pytest

from tests.unit.stub.conftest import Machine

MS = 1_000_000
BURN = """
    gpu = Driver()
    spin = gpu.kernel("spin")
    say(ready=True)
    wait_for_line()
    until = time.monotonic() + {seconds}
    launched = 0
    while time.monotonic() < until:
        for _ in range({batch}):
            gpu.launch(spin, {kernel_ns})
            launched += 1
        gpu.cuCtxSynchronize()
    say(launched=launched)
    wait_for_line()
"""


def burn(seconds: float, kernel_ns: int, batch: int) -> str:
    return BURN.format(seconds=seconds, kernel_ns=kernel_ns, batch=batch)


def test_a_kernel_takes_its_time_and_is_counted_to_the_nanosecond(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        start, end = gpu.create("cuEventCreate", c_uint(0)), gpu.create("cuEventCreate", c_uint(0))
        gpu.launch(spin, 1_000_000)
        gpu.cuEventRecord(start, None)
        began = time.monotonic_ns()
        gpu.launch(spin, 20_000_000)
        launched = time.monotonic_ns()
        gpu.cuEventRecord(end, None)
        try:
            gpu.cuEventQuery(end)
            running = False
        except CudaError as error:
            running = error.code == 600
        gpu.cuEventSynchronize(end)
        done = time.monotonic_ns()
        elapsed = c_float()
        gpu.cuEventElapsedTime(byref(elapsed), start, end)
        say(launch_ms=(launched - began) / 1e6, took_ms=(done - began) / 1e6, running=running, event_ms=elapsed.value)
    """)
    assert said["running"]
    assert said["launch_ms"] < 10
    assert said["took_ms"] >= 19.9
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


def test_two_processes_share_the_engine_evenly_whatever_the_length_of_their_kernels(machine: Machine) -> None:
    short = machine.start(burn(1.0, MS, 40))
    long = machine.start(burn(1.0, 100 * MS, 2))
    for process in (short, long):
        process.heard()
    for process in (short, long):
        process.go_on()
    launched = {"short": short.heard()["launched"], "long": long.heard()["launched"]}
    counted = {process.pid: process.gpu_time_ns for process in machine.card().processes}
    assert counted[short.popen.pid] == launched["short"] * MS
    assert counted[long.popen.pid] == launched["long"] * 100 * MS
    # The last kernels of the long one may run on alone; until then both had the same.
    assert counted[short.popen.pid] == pytest.approx(0.5e9, rel=0.15)


def test_two_processes_with_queued_work_hold_the_engine_for_equal_times(machine: Machine) -> None:
    queue = """
        gpu = Driver()
        spin = gpu.kernel("spin")
        say(ready=True)
        wait_for_line()
        for _ in range(400):
            gpu.launch(spin, {kernel_ns})
        gpu.cuCtxSynchronize()
        say(done=time.monotonic())
    """
    one, other = (machine.start(queue.format(kernel_ns=ns)) for ns in (500_000, 1_000_000))
    for process in (one, other):
        process.heard()
    for process in (one, other):
        process.go_on()
    first, second = one.heard()["done"], other.heard()["done"]
    # 200 ms and 400 ms of work: the first is done after 400 ms of sharing, the second after 600 ms in all.
    assert second - first == pytest.approx(0.2, abs=0.06)
    assert machine.card().gpu_time_ns == 600 * MS


def test_an_idle_engine_is_used_at_once(machine: Machine) -> None:
    idle = machine.start("gpu = Driver(); gpu.launch(gpu.kernel('spin'), 1000); say(there=True); wait_for_line()")
    idle.heard()
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        began = time.monotonic()
        gpu.launch(spin, 100_000_000)
        gpu.cuCtxSynchronize()
        say(took=time.monotonic() - began)
    """)
    assert 0.1 <= said["took"] < 0.5
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
        for _ in range(20):
            gpu.launch(spin, 1_000_000)
        wait_for_line()
        began = time.monotonic()
        gpu.cuCtxSynchronize()
        say(took=time.monotonic() - began)
    """)
    waiting.heard()
    victim.kill()
    waiting.go_on()
    assert waiting.heard()["took"] < 0.5
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
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        one, other = (gpu.create("cuStreamCreate", c_uint(1)) for _ in range(2))
        event = gpu.create("cuEventCreate", c_uint(2))
        gpu.launch(spin, 30_000_000, one)
        gpu.cuEventRecord(event, one)
        gpu.cuStreamWaitEvent(other, event, c_uint(0))
        data = gpu.alloc(4)
        gpu.cuMemsetD32Async(data, c_uint(5), 1, other)
        try:
            gpu.cuStreamQuery(other)
            waits = False
        except CudaError as error:
            waits = error.code == 600
        gpu.cuStreamSynchronize(other)
        say(waits=waits, value=gpu.read(data, 4)[0])
    """)
    assert said == {"waits": True, "value": 5}


def test_a_stream_takes_1024_launches_before_the_caller_waits(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        spin = gpu.kernel("spin")
        began = time.monotonic()
        gpu.launch(spin, 200_000_000)
        for _ in range(1023):
            gpu.launch(spin, 1000)
        queued = time.monotonic() - began
        gpu.launch(spin, 1000)
        say(queued=queued, waited=time.monotonic() - began)
    """)
    assert said["queued"] < 0.15
    assert said["waited"] >= 0.19


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
        began = time.monotonic()
        for _ in range(10):
            gpu.launch(spin, 1_000_000)
        gpu.cuCtxSynchronize()
        say(took=time.monotonic() - began)
    """)
    assert said["took"] < 3
    frozen.popen.send_signal(signal.SIGCONT)
    assert frozen.heard() == {"done": True}
    counted = {process.pid: process.gpu_time_ns for process in machine.card().processes}
    assert counted[frozen.popen.pid] == 2000 * MS
