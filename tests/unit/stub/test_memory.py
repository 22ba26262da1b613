"""Memory of a simulated card: it runs out exactly, it holds what was written, and it comes back."""

from tests.unit.stub.conftest import MIB, Machine, MakeMachine


def test_memory_runs_out_exactly_at_the_size_of_the_card(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        free, total = gpu.info()
        gpu.alloc(total - 1)
        gpu.alloc(1)
        try:
            gpu.alloc(1)
        except CudaError as error:
            say(free=free, total=total, code=error.code, left=gpu.info()[0])
    """)
    assert said == {"free": 1024 * MIB, "total": 1024 * MIB, "code": 2, "left": 0}
    assert machine.card().peak_bytes == 1024 * MIB
    assert machine.card().processes[0].out_of_memory == 1


def test_what_is_written_to_the_device_is_read_back(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        data = os.urandom(3 * MIB + 5)
        one, other = gpu.alloc(len(data)), gpu.alloc(len(data))
        gpu.write(one, data)
        gpu.cuMemcpyDtoD_v2(other, one, len(data))
        whole = gpu.read(other, len(data)) == data
        gpu.cuMemsetD32_v2(one + 4, c_uint(0x01020304), 2)
        say(whole=whole, start=gpu.read(one, 13)[4:12].hex(), rest=gpu.read(one, 13)[12:] == data[12:13])
    """)
    assert said == {"whole": True, "start": "0403020104030201", "rest": True}


def test_a_copy_over_the_end_of_an_allocation_is_refused(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        pointer = gpu.alloc(4096)
        codes = []
        for size, offset in ((4096, 0), (4097, 0), (1, 4096)):
            try:
                gpu.write(pointer + offset, b"x" * size)
                codes.append(0)
            except CudaError as error:
                codes.append(error.code)
        say(codes=codes)
    """)
    assert said == {"codes": [0, 1, 1]}


def test_memory_of_a_killed_process_is_there_for_others_at_once(machine: Machine) -> None:
    holder = machine.start("""
        gpu = Driver()
        gpu.alloc(1000 * MIB)
        say(held=True)
        wait_for_line()
    """)
    holder.heard()
    taker = machine.start("""
        gpu = Driver()
        before = gpu.info()[0]
        say(before=before)
        wait_for_line()
        gpu.alloc(1024 * MIB)
        say(after=gpu.info()[0])
    """)
    assert taker.heard() == {"before": 24 * MIB}
    holder.kill()
    assert machine.card().used_bytes == 0
    taker.go_on()
    assert taker.finish() == [{"after": 0}]
    ended = next(process for process in machine.card().processes if process.pid == holder.popen.pid)
    assert (ended.alive, ended.memory_bytes, ended.peak_bytes) == (False, 0, 1000 * MIB)


def test_processes_killed_at_random_leave_nothing_charged(machine: Machine) -> None:
    script = """
        import random
        gpu = Driver()
        held = []
        say(ready=True)
        while True:
            if held and random.random() < 0.5:
                gpu.cuMemFree_v2(held.pop())
            else:
                try:
                    held.append(gpu.alloc(random.randrange(1, 8 * MIB)))
                except CudaError:
                    pass
            if len(held) > 40:
                gpu.cuMemFree_v2(held.pop(0))
    """
    for _ in range(4):
        processes = [machine.start(script) for _ in range(4)]
        for process in processes:
            process.heard()
        for process in processes:
            process.kill()
    assert machine.card().used_bytes == 0
    assert machine.card().peak_bytes <= 1024 * MIB
    said = machine.run("gpu = Driver(); gpu.alloc(1024 * MIB); say(left=gpu.info()[0])")
    assert said == {"left": 0}


def test_a_forked_child_starts_anew_and_the_parent_keeps_its_memory(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        pointer = gpu.alloc(100 * MIB)
        gpu.write(pointer, b"parent")
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                gpu.alloc(1)
            except CudaError as error:
                code = error.code
            child = Driver()
            child.alloc(200 * MIB)
            os.write(writer, json.dumps([code, child.info()[0]]).encode())
            os._exit(0)
        code, free_in_child = json.loads(os.read(reader, 100))
        os.wait()
        say(code=code, free_in_child=free_in_child, free=gpu.info()[0], data=gpu.read(pointer, 6).decode())
    """)
    assert said == {"code": 3, "free_in_child": 724 * MIB, "free": 924 * MIB, "data": "parent"}


def test_a_forked_child_that_starts_nothing_may_fork_again(machine: Machine) -> None:
    said = machine.run("""
        import faulthandler
        faulthandler.dump_traceback_later(50, exit=True)
        gpu = Driver()
        reader, writer = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                child = Driver()
                child.alloc(200 * MIB)
                os.write(writer, json.dumps(child.info()[0]).encode())
            else:
                os.wait()
            os._exit(0)
        os.close(writer)
        say(free_in_grandchild=json.loads(os.read(reader, 100) or "null"))
        os.wait()
    """)
    assert said == {"free_in_grandchild": 824 * MIB}


def test_a_parent_that_dies_before_its_forked_child_gives_its_memory_back(machine: Machine) -> None:
    parent = machine.start("""
        gpu = Driver()
        gpu.alloc(100 * MIB)
        if os.fork() == 0:
            say(child=os.getpid())
            wait_for_line()
            os._exit(0)
        time.sleep(60)
    """)
    parent.heard()
    assert machine.card().used_bytes == 100 * MIB
    parent.popen.kill()
    parent.popen.wait()
    assert machine.card().used_bytes == 0
    parent.go_on()


def test_contexts_modules_and_what_the_driver_keeps_are_charged_as_set(make_machine: MakeMachine) -> None:
    machine = make_machine(1024 * MIB, reserved_bytes=24 * MIB, context_bytes=100 * MIB, module_bytes=10 * MIB)
    process = machine.start("""
        gpu = Driver()
        with_context = gpu.info()[0] // MIB
        gpu.kernel("spin")
        say(with_context=with_context, with_module=gpu.info()[0] // MIB)
        wait_for_line()
        gpu.cuDevicePrimaryCtxRelease_v2(0)
        say(released=True)
        wait_for_line()
    """)
    assert process.heard() == {"with_context": 900, "with_module": 890}
    process.go_on()
    process.heard()
    assert machine.card().used_bytes == 0
    process.go_on()


def test_managed_memory_past_the_card_lives_on_the_host(machine: Machine) -> None:
    process = machine.start("""
        gpu = Driver()
        def managed(size, flags=1):
            pointer = c_uint64()
            gpu.cuMemAllocManaged(byref(pointer), size, c_uint(flags))
            return pointer.value
        first, second, third = managed(1000 * MIB), managed(500 * MIB), managed(10 * MIB, 2)
        ctypes.memset(second, 7, 100)
        say(free=gpu.info()[0] // MIB, byte=gpu.read(second + 99, 1)[0])
        wait_for_line()
        gpu.cuMemPrefetchAsync(first, 1000 * MIB, c_int(-1), None)
        gpu.cuMemPrefetchAsync(second, 500 * MIB, c_int(0), None)
        say(free=gpu.info()[0] // MIB)
        wait_for_line()
    """)
    assert process.heard() == {"free": 24, "byte": 7}
    held = machine.card().live[0]
    assert (held.memory_bytes, held.host_bytes) == (1000 * MIB, 510 * MIB)
    process.go_on()
    assert process.heard() == {"free": 524}
    assert machine.card().live[0].host_bytes == 1010 * MIB


def test_pinned_host_memory_takes_nothing_from_the_card(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        host = c_void_p()
        gpu.cuMemHostAlloc(byref(host), 8 * MIB, c_uint(0))
        ctypes.memset(host, 3, 8)
        pointer = gpu.alloc(8)
        gpu.cuMemcpyHtoD_v2(pointer, host, 8)
        kind = c_uint()
        gpu.cuPointerGetAttribute(byref(kind), c_int(2), host)
        say(free=gpu.info()[0], data=list(gpu.read(pointer, 8)), kind=kind.value)
    """)
    assert said == {"free": 1024 * MIB - 8, "data": [3] * 8, "kind": 1}


def test_pitched_memory_and_two_dimensional_copies_keep_rows_apart(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        pointer, pitch = c_uint64(), c_size_t()
        gpu.cuMemAllocPitch_v2(byref(pointer), byref(pitch), 100, 10, c_uint(4))
        rows = bytes(range(250)) * 4
        class Copy(ctypes.Structure):
            _fields_ = [("sx", c_size_t), ("sy", c_size_t), ("st", c_int), ("sh", c_void_p), ("sd", c_uint64),
                        ("sa", c_void_p), ("sp", c_size_t), ("dx", c_size_t), ("dy", c_size_t), ("dt", c_int),
                        ("dh", c_void_p), ("dd", c_uint64), ("da", c_void_p), ("dp", c_size_t),
                        ("width", c_size_t), ("height", c_size_t)]
        source = create_string_buffer(rows)
        copy = Copy(st=1, sh=ctypes.addressof(source), sp=100, dt=2, dd=pointer.value, dp=pitch.value,
                    width=100, height=10)
        gpu.cuMemcpy2D_v2(byref(copy))
        third = gpu.read(pointer.value + 3 * pitch.value, 100) == rows[300:400]
        say(pitch=pitch.value, used=gpu.info()[1] - gpu.info()[0], third=third)
    """)
    assert said == {"pitch": 512, "used": 5120, "third": True}


def test_arrays_and_mipmaps_take_the_bytes_of_their_elements(machine: Machine) -> None:
    said = machine.run("""
        gpu = Driver()
        class Desc(ctypes.Structure):
            _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int),
                        ("channels", c_uint), ("flags", c_uint)]
        used = lambda: gpu.info()[1] - gpu.info()[0]
        volume = gpu.create("cuArray3DCreate_v2", byref(Desc(64, 32, 4, 0x20, 4, 0)))
        with_volume = used()
        mipmap = gpu.create("cuMipmappedArrayCreate", byref(Desc(8, 8, 0, 0x01, 1, 0)), c_uint(3))
        with_mipmap = used()
        gpu.cuArrayDestroy(volume)
        gpu.cuMipmappedArrayDestroy(mipmap)
        say(volume=with_volume, mipmap=with_mipmap - with_volume, left=used())
    """)
    assert said == {"volume": 64 * 32 * 4 * 16, "mipmap": 64 + 16 + 4, "left": 0}
