"""Memory that several processes hold: it stays on the card until the last of them lets go."""

from tests.unit.stub.conftest import MIB, Machine

EXPORTING = """
    import socket
    gpu = Driver()
    properties = (c_int * 16)(1, 1, 1, 0)  # to be exported as a file descriptor
    memory, descriptor = c_uint64(), c_int()
    gpu.cuMemCreate(byref(memory), c_size_t(40 * MIB), properties, c_uint64(0))
    gpu.cuMemExportToShareableHandle(byref(descriptor), memory, 1, c_uint64(0))
"""


def test_opened_memory_stays_until_the_last_process_closes_it_and_is_counted_to_who_holds_it(machine: Machine) -> None:
    exporter = machine.start("""
        gpu = Driver()
        pointer, handle = gpu.alloc(40 * MIB), create_string_buffer(64)
        gpu.cuIpcGetMemHandle(handle, pointer)
        say(handle=handle.raw.hex())
        wait_for_line()
        gpu.cuMemFree_v2(pointer)
        say(freed=True)
        wait_for_line()
    """)
    handle = exporter.heard()["handle"]
    opening = f"""
        class Handle(ctypes.Structure):
            _fields_ = [("bytes", ctypes.c_char * 64)]
        gpu, pointer = Driver(), c_uint64()
        gpu.cuIpcOpenMemHandle_v2(byref(pointer), Handle.from_buffer_copy(bytes.fromhex("{handle}")), 1)
        say(opened=True)
        wait_for_line()
        gpu.cuIpcCloseMemHandle(pointer)
        say(closed=True)
    """
    importers = [machine.start(opening), machine.start(opening)]
    for importer in importers:
        importer.heard()
    assert machine.card().used_bytes == 40 * MIB
    exporter.go_on()
    exporter.heard()
    held = {process.pid: process.memory_bytes for process in machine.card().live}
    assert sorted(held.values()) == [0, 0, 40 * MIB]
    assert held[exporter.popen.pid] == 0
    importers[0].go_on()
    importers[0].finish()
    held = {process.pid: process.memory_bytes for process in machine.card().live}
    assert held == {exporter.popen.pid: 0, importers[1].popen.pid: 40 * MIB}
    importers[1].go_on()
    importers[1].finish()
    assert machine.card().used_bytes == 0
    exporter.go_on()
    exporter.finish()


def test_opened_memory_outlives_the_process_that_exported_it_and_was_killed(machine: Machine) -> None:
    exporter = machine.start("""
        gpu = Driver()
        pointer, handle = gpu.alloc(40 * MIB), create_string_buffer(64)
        gpu.cuIpcGetMemHandle(handle, pointer)
        say(handle=handle.raw.hex())
        wait_for_line()
    """)
    importer = machine.start(f"""
        class Handle(ctypes.Structure):
            _fields_ = [("bytes", ctypes.c_char * 64)]
        gpu, pointer = Driver(), c_uint64()
        gpu.cuIpcOpenMemHandle_v2(
            byref(pointer), Handle.from_buffer_copy(bytes.fromhex("{exporter.heard()["handle"]}")), 1
        )
        say(opened=True)
        wait_for_line()
        say(free=gpu.info()[0])  # who asks buries the dead
    """)
    importer.heard()
    exporter.kill()
    assert [process.memory_bytes for process in machine.card().live] == [40 * MIB]
    importer.go_on()
    assert importer.heard() == {"free": (1024 - 40) * MIB}
    importer.finish()
    assert machine.card().used_bytes == 0


def test_an_open_descriptor_keeps_exported_memory(machine: Machine) -> None:
    machine.start(
        EXPORTING
        + """
    before = gpu.info()[0]
    gpu.cuMemRelease(memory)
    duplicate = os.dup(descriptor.value)
    os.close(descriptor.value)
    assert gpu.info()[0] == before
    os.close(duplicate)
    assert gpu.info()[0] == before + 40 * MIB
    """
    ).finish()


def test_memory_imported_where_it_was_exported_has_two_holders(machine: Machine) -> None:
    machine.start(
        EXPORTING
        + """
    before, imported = gpu.info()[0], c_uint64()
    gpu.cuMemImportFromShareableHandle(byref(imported), c_void_p(descriptor.value), 1)
    os.close(descriptor.value)
    gpu.cuMemRelease(memory)
    assert gpu.info()[0] == before
    gpu.cuMemRelease(imported)
    assert gpu.info()[0] == before + 40 * MIB
    """
    ).finish()
