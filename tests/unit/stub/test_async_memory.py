"""Pools, stream-ordered memory, graphs with memory, virtual memory and memory shared between processes."""

import textwrap

from tests.unit.stub.conftest import MIB, Machine, MakeMachine

HELPERS = """
gpu = Driver()
used = lambda: gpu.info()[1] - gpu.info()[0]
def alloc_async(size, stream=None):
    pointer = c_uint64()
    gpu.cuMemAllocAsync(byref(pointer), size, stream)
    return pointer.value
def pool_attribute(pool, attribute, value=None):
    number = c_uint64(0 if value is None else value)
    gpu.cuMemPoolSetAttribute(pool, c_int(attribute), byref(number)) if value is not None else \\
        gpu.cuMemPoolGetAttribute(pool, c_int(attribute), byref(number))
    return number.value
def default_pool():
    pool = c_void_p()
    gpu.cuDeviceGetDefaultMemPool(byref(pool), c_int(0))
    return pool
THRESHOLD, RESERVED, USED = 4, 5, 7
"""


def script(text: str) -> str:
    """Put the helpers in front of an indented script."""
    return HELPERS + textwrap.dedent(text)


def test_freed_stream_ordered_memory_stays_with_the_pool_until_a_synchronisation(machine: Machine) -> None:
    said = machine.run(
        script("""
        pointer = alloc_async(100 * MIB)
        held = used()
        gpu.cuMemFreeAsync(pointer, None)
        freed = used(), pool_attribute(default_pool(), RESERVED), pool_attribute(default_pool(), USED)
        gpu.cuStreamSynchronize(None)
        say(held=held, freed=freed, settled=used())
    """)
    )
    assert said == {"held": 100 * MIB, "freed": [100 * MIB, 100 * MIB, 0], "settled": 0}


def test_a_release_threshold_keeps_memory_over_synchronisations_until_it_is_trimmed(machine: Machine) -> None:
    said = machine.run(
        script("""
        pool_attribute(default_pool(), THRESHOLD, 60 * MIB)
        gpu.cuMemFreeAsync(alloc_async(100 * MIB), None)
        gpu.cuStreamSynchronize(None)
        kept = used()
        gpu.cuMemPoolTrimTo(default_pool(), 10 * MIB)
        say(kept=kept, trimmed=used())
    """)
    )
    assert said == {"kept": 60 * MIB, "trimmed": 10 * MIB}


def test_memory_freed_on_a_stream_is_reused_there_at_once_and_elsewhere_when_the_free_was_reached(
    machine: Machine,
) -> None:
    said = machine.run(
        script("""
        spin = gpu.kernel("spin")
        one, other = (gpu.create("cuStreamCreate", c_uint(1)) for _ in range(2))
        pointer = alloc_async(50 * MIB, one)
        gpu.launch(spin, 50_000_000, one)
        gpu.cuMemFreeAsync(pointer, one)
        alloc_async(50 * MIB, one)
        same = used()
        gpu.launch(spin, 50_000_000, one)
        second = alloc_async(30 * MIB, one)
        gpu.cuMemFreeAsync(second, one)
        alloc_async(30 * MIB, other)
        say(same=same, other=used())
    """)
    )
    assert said == {"same": 50 * MIB, "other": 110 * MIB}


def test_memory_that_pools_keep_is_given_back_before_the_process_runs_out(machine: Machine) -> None:
    said = machine.run(
        script("""
        pool_attribute(default_pool(), THRESHOLD, 1 << 40)
        gpu.cuMemFreeAsync(alloc_async(1000 * MIB), None)
        gpu.cuCtxSynchronize()
        kept = used()
        gpu.alloc(1024 * MIB)
        say(kept=kept, used=used())
    """)
    )
    assert said == {"kept": 1000 * MIB, "used": 1024 * MIB}


def test_pools_grow_in_chunks_where_that_is_set(make_machine: MakeMachine) -> None:
    machine = make_machine(1024 * MIB, pool_chunk_bytes=32 * MIB)
    said = machine.run(
        script("""
        first = alloc_async(1)
        one = used()
        alloc_async(32 * MIB)
        say(one=one, two=used())
    """)
    )
    assert said == {"one": 32 * MIB, "two": 64 * MIB}


def test_graph_memory_is_taken_at_launch_and_kept_until_it_is_trimmed(machine: Machine) -> None:
    said = machine.run(
        script("""
        stream = gpu.create("cuStreamCreate", c_uint(1))
        gpu.cuStreamBeginCapture_v2(stream, c_int(0))
        pointer = alloc_async(64 * MIB, stream)
        gpu.cuMemsetD8Async(pointer, ctypes.c_ubyte(7), 100, stream)
        gpu.cuMemFreeAsync(pointer, stream)
        graph = c_void_p()
        gpu.cuStreamEndCapture(stream, byref(graph))
        executable = gpu.create("cuGraphInstantiateWithFlags", graph, 0)
        before = used()
        gpu.cuGraphLaunch(executable, stream)
        gpu.cuStreamSynchronize(stream)
        launched = used()
        gpu.cuGraphLaunch(executable, stream)
        gpu.cuStreamSynchronize(stream)
        again = used()
        gpu.cuDeviceGraphMemTrim(c_int(0))
        say(before=before, launched=launched, again=again, trimmed=used())
    """)
    )
    assert said == {"before": 0, "launched": 64 * MIB, "again": 64 * MIB, "trimmed": 0}


def test_a_graph_launch_without_room_for_its_memory_is_out_of_memory(machine: Machine) -> None:
    said = machine.run(
        script("""
        stream = gpu.create("cuStreamCreate", c_uint(1))
        gpu.cuStreamBeginCapture_v2(stream, c_int(0))
        alloc_async(600 * MIB, stream)
        graph = c_void_p()
        gpu.cuStreamEndCapture(stream, byref(graph))
        executable = gpu.create("cuGraphInstantiateWithFlags", graph, 0)
        gpu.alloc(500 * MIB)
        try:
            gpu.cuGraphLaunch(executable, stream)
        except CudaError as error:
            say(code=error.code, used=used())
    """)
    )
    assert said == {"code": 2, "used": 500 * MIB}


VIRTUAL = """
class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]
class Properties(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("meta", c_void_p),
                ("flags", ctypes.c_ubyte * 8)]
class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", c_int)]
ON_CARD = Properties(1, 1, Location(1, 0))
def create(size):
    handle = c_uint64()
    gpu.cuMemCreate(byref(handle), size, byref(ON_CARD), 0)
    return handle
def reserve(size):
    pointer = c_uint64()
    gpu.cuMemAddressReserve(byref(pointer), size, 0, 0, 0)
    return pointer.value
def map_at(pointer, size, handle):
    gpu.cuMemMap(pointer, size, 0, handle, 0)
    gpu.cuMemSetAccess(pointer, size, byref(Access(Location(1, 0), 3)), 1)
"""


def test_created_memory_is_charged_once_however_often_it_is_mapped(machine: Machine) -> None:
    said = machine.run(
        script(
            VIRTUAL
            + """
try:
    create(MIB)
except CudaError as error:
    odd = error.code
handle, base = create(4 * MIB), reserve(16 * MIB)
created = used()
map_at(base, 4 * MIB, handle)
map_at(base + 8 * MIB, 4 * MIB, handle)
gpu.write(base + 5, b"seen twice")
twice = gpu.read(base + 8 * MIB + 5, 10).decode()
gpu.cuMemRelease(handle)
released = used()
gpu.cuMemUnmap(base, 4 * MIB)
one_left = used()
gpu.cuMemUnmap(base + 8 * MIB, 4 * MIB)
gpu.cuMemAddressFree(base, 16 * MIB)
say(odd=odd, created=created, twice=twice, released=released, one_left=one_left, end=used())
    """
        )
    )
    assert said == {
        "odd": 1,
        "created": 4 * MIB,
        "twice": "seen twice",
        "released": 4 * MIB,
        "one_left": 4 * MIB,
        "end": 0,
    }


def test_memory_opened_by_ipc_is_the_exporters_and_charged_to_it_alone(machine: Machine) -> None:
    exporter = machine.start(
        script("""
        pointer = gpu.alloc(3 * MIB)
        gpu.write(pointer, b"from the exporter")
        handle = create_string_buffer(64)
        gpu.cuIpcGetMemHandle(handle, pointer + 5)
        say(handle=handle.raw.hex())
        wait_for_line()
        say(data=gpu.read(pointer + 5, 12).decode())
    """)
    )
    handle = exporter.heard()["handle"]
    said = machine.run(
        script(f"""
        class Handle(ctypes.Structure):
            _fields_ = [("bytes", ctypes.c_ubyte * 64)]
        pointer = c_uint64()
        gpu.cuIpcOpenMemHandle_v2(byref(pointer), Handle.from_buffer_copy(bytes.fromhex("{handle}")), c_uint(1))
        seen = gpu.read(pointer.value, 12).decode()
        gpu.write(pointer.value, b"the importer")
        mine = used()
        gpu.cuIpcCloseMemHandle(pointer.value)
        say(seen=seen, used=mine)
    """)
    )
    assert said == {"seen": "the exporter", "used": 3 * MIB}
    exporter.go_on()
    assert exporter.finish() == [{"data": "the importer"}]
    assert [process.peak_bytes for process in machine.card().processes] == [3 * MIB, 0]
