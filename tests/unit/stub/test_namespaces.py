"""One card used from several pid namespaces, as containers that bind-mount its file do."""

import subprocess
from pathlib import Path

import pytest

from tests.unit.stub.conftest import MIB, Machine, Process

OWN_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")

pytestmark = pytest.mark.skipif(
    subprocess.run([*OWN_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine does not let us make pid namespaces",
)

HOLD = """
    gpu = Driver()
    gpu.alloc({mib} * MIB)
    say(pid=os.getpid())
    wait_for_line()
    gpu.launch(gpu.kernel("spin"), 5_000_000)
    gpu.cuCtxSynchronize()
    say(done=True)
    wait_for_line()
"""


def hold(machine: Machine, mib: int) -> Process:
    return machine.start(HOLD.format(mib=mib), before=OWN_NAMESPACE)


def test_two_processes_of_the_same_pid_in_two_namespaces_are_two_processes(machine: Machine) -> None:
    one, other = hold(machine, 100), hold(machine, 200)
    assert one.heard() == {"pid": 1}
    assert other.heard() == {"pid": 1}
    live = machine.card().live
    assert [process.pid for process in live] == [1, 1]
    assert len({process.pid_namespace for process in live}) == 2
    assert sorted(process.memory_bytes for process in live) == [100 * MIB, 200 * MIB]
    for process in (one, other):
        process.go_on()
    assert one.heard() == other.heard() == {"done": True}
    assert [process.gpu_time_ns for process in machine.card().live] == [5_000_000, 5_000_000]


def test_a_death_in_one_namespace_is_seen_in_another(machine: Machine) -> None:
    holder, other = hold(machine, 900), hold(machine, 24)
    holder.heard()
    other.heard()
    full = machine.start(
        """
        gpu = Driver()
        say(free=gpu.info()[0] // MIB)
        wait_for_line()
        gpu.alloc(1000 * MIB)
        say(free=gpu.info()[0])
        """,
        before=OWN_NAMESPACE,
    )
    assert full.heard() == {"free": 100}
    holder.kill()
    full.go_on()
    assert full.heard() == {"free": 0}


def test_nvml_lists_processes_by_the_ids_that_the_caller_sees(machine: Machine) -> None:
    inside = hold(machine, 64)
    inside.heard()
    seen = machine.program("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    pid, used = seen.strip().split(", ")
    outer = inside.popen.pid  # unshare, whose child is the process
    children = Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()
    assert (pid, used) == (children[0], "64")
    other = machine.start(
        """
        import subprocess, pathlib
        program = str(pathlib.Path(os.environ["VGPU_STUB_DEV_DIR"]).parent / "usr/bin/nvidia-smi")
        say(seen=subprocess.run([program, "--query-compute-apps=pid", "--format=csv,noheader"],
                                capture_output=True, text=True).stdout)
        """,
        before=OWN_NAMESPACE,
    )
    assert other.heard() == {"seen": ""}
