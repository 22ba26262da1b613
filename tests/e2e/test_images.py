"""Images with an /etc/ld.so.preload of their own, on a real node: their library is kept, and ours cannot be dropped."""

import subprocess
from pathlib import Path

import pytest

from deploy.demo.scenario import BUILD, build_worker
from deploy.local import imagecontents
from deploy.local.images import Content, Image, Link
from tests.e2e.workloads import Asked, Container, Workloads

pytestmark = pytest.mark.cluster

_OWN = """
#include <unistd.h>
__attribute__((constructor)) static void say(void) { (void)!write(2, "own library\\n", 12); }
"""
_SCRIPT = "cat /etc/ld.so.preload; worker grab 1100; echo status $?"
_NOBODY = {"runAsUser": 65534, "runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}


def _load(workloads: Workloads, folder: Path, content: Content, path: str = "/etc/ld.so.preload") -> str:
    """Load an image whose preload file has this content, and return its name."""
    own = folder / "libown.so"
    source = folder / "own.c"
    source.write_text(_OWN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(own), str(source)], check=True)
    worker = imagecontents.workload({"/usr/bin/worker": build_worker(BUILD / "demo")}, "vgpu.local/own-preload")
    files = {**worker.files, "/usr/lib/libown.so": own, "/usr/lib/own.list": b"/usr/lib/libown.so\n", path: content}
    return workloads.scenario.cluster.load_image(Image("vgpu.local/own-preload", files).archive())


def _preloaded(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.endswith(".so")]


@pytest.mark.parametrize("security", [{}, _NOBODY], ids=["root", "nobody-on-a-read-only-root"])
def test_an_image_keeps_the_library_that_it_preloads_and_the_share_holds(
    workloads: Workloads, tmp_path: Path, security: dict[str, object]
) -> None:
    image = _load(workloads, tmp_path, b"/usr/lib/libown.so\n")
    workloads.start("own", Asked(), Container(["sh", "-c", _SCRIPT], security=security, image=image))

    output = workloads.finish("own")

    ours, theirs = _preloaded(output)
    assert ours.startswith("/usr/lib/vgpu/libvgpu-")
    assert theirs == "/usr/lib/libown.so"
    assert "own library" in output
    assert "total_mib=1024" in output
    assert "status 3" in output


def test_a_malformed_preload_file_of_an_image_does_not_drop_the_share(workloads: Workloads, tmp_path: Path) -> None:
    image = _load(workloads, tmp_path, b"\0#\0 /nowhere/\x7f.so #")
    workloads.start("malformed", Asked(), Container(["sh", "-c", _SCRIPT], image=image))

    output = workloads.finish("malformed")

    assert "total_mib=1024" in output
    assert "status 3" in output


@pytest.mark.slow
@pytest.mark.parametrize("target", ["/usr/lib/own.list", "/nowhere/own.list", "../../../usr/lib/own.list"])
def test_a_preload_file_that_is_a_link_does_not_drop_the_share(
    workloads: Workloads, tmp_path: Path, target: str
) -> None:
    image = _load(workloads, tmp_path, Link(target))
    workloads.start("linked", Asked(), Container(["sh", "-c", _SCRIPT], image=image))

    output = workloads.finish("linked")

    assert _preloaded(output)[0].startswith("/usr/lib/vgpu/libvgpu-")
    assert "total_mib=1024" in output
    assert output.strip().endswith("status 3")


@pytest.mark.slow
def test_an_image_with_a_folder_in_the_place_of_the_preload_file_does_not_run(
    workloads: Workloads, tmp_path: Path
) -> None:
    image = _load(workloads, tmp_path, b"", "/etc/ld.so.preload/file")
    workloads.start("folder", Asked(), Container(["sh", "-c", _SCRIPT], image=image))

    pod = workloads.wait_for_phase("folder", "Failed", "Succeeded")

    (status,) = pod["status"]["containerStatuses"]
    assert status["state"]["terminated"]["reason"] == "StartError"
    assert "not a directory" in status["state"]["terminated"]["message"]
