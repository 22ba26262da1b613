"""The hook that keeps an image's own /etc/ld.so.preload: tried in a mount namespace that is as a runtime makes it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libvgpu.paths import hook_path, library_path

_OURS = "/usr/lib/vgpu/libvgpu-0123456789ab.so\n"
_NAME = "libvgpu-0123456789ab.so.preload"


@dataclass
class Bundle:
    """A node's folder of libraries, and the root of a container's image."""

    node: Path
    root: Path
    before: str = "mount --make-rslave /"
    """As runtimes do, unless a pod wants its mounts to reach the node."""
    options: list[str] = field(default_factory=list)

    def run(self, after: str = "cat etc/ld.so.preload") -> str:
        """Mount our file over the image's, call the hook, and return what a command in the image's root says then."""
        script = (
            f"{self.before} && cd {self.root} && mount --rbind . . && cd {self.root} && "
            "{ [ -e etc/ld.so.preload ] || touch etc/ld.so.preload; } && "
            f"mount --bind {self.node}/{_NAME} etc/ld.so.preload && "
            f"mount -o remount,bind,ro etc/ld.so.preload && {self.node}/merge {_NAME} && {after}"
        )
        command = ["unshare", "--mount", "--propagation", "unchanged", *self.options, "sh", "-ec", script]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str | None], Bundle]:
    """Return a function that makes an image with this content of its file; None: without one."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")

    def make_bundle(content: str | None) -> Bundle:
        bundle = Bundle(tmp_path / "lib", tmp_path / "root")
        bundle.node.mkdir()
        (bundle.root / "etc").mkdir(parents=True)
        shutil.copy2(hook_path(library_path()), bundle.node / "merge")
        (bundle.node / _NAME).write_text(_OURS)
        if content is not None:
            (bundle.root / "etc/ld.so.preload").write_text(content)
        return bundle

    return make_bundle


@pytest.mark.parametrize(
    "content",
    ["/usr/lib/libown.so\n", "/usr/lib/libown.so", "libone.so libtwo.so:libthree.so", "# a comment\nlibown.so\n"],
)
def test_an_image_keeps_its_libraries_behind_ours(make: Callable[[str], Bundle], content: str) -> None:
    bundle = make(content)

    assert bundle.run() == f"{_OURS}{content}\n"
    assert (bundle.root / "etc/ld.so.preload").read_text() == content, "the image itself is not changed"


@pytest.mark.parametrize("content", [None, "", "\n", " \t\n:"])
def test_an_image_that_names_nothing_has_ours_alone(make: Callable[[str | None], Bundle], content: str | None) -> None:
    assert make(content).run() == _OURS


@pytest.mark.parametrize("content", ["\0\0\0", "#", "#\\", "\x01:::", '"', "/nowhere/lib.so\0#", "x" * 60_000])
def test_a_malformed_file_cannot_drop_ours(make: Callable[[str], Bundle], content: str) -> None:
    assert make(content).run().splitlines()[0] == _OURS.strip()


def test_a_file_that_is_too_long_is_passed_over(make: Callable[[str], Bundle]) -> None:
    assert make("x" * 70_000).run() == _OURS


@pytest.mark.parametrize("link", ["etc/ld.so.preload", "etc"])
def test_a_symbolic_link_of_an_image_does_not_lead_to_a_file_of_the_node(
    make: Callable[[None], Bundle], tmp_path: Path, link: str
) -> None:
    bundle = make(None)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "ld.so.preload").write_text("the node's secret\n")
    # Swapped under the runtime's mount, which it made on the file that is meant inside of the image.
    swap = (
        f"rm etc/ld.so.preload; ln -s {secret}/ld.so.preload etc/ld.so.preload"
        if link != "etc"
        else f"mv etc old; ln -s {secret} etc"
    )
    script = (
        f"mount --make-rslave / && cd {bundle.root} && mount --rbind . . && cd {bundle.root} && "
        "touch etc/ld.so.preload && "
        f"mount --bind {bundle.node}/{_NAME} etc/ld.so.preload && mkdir {tmp_path}/under && "
        f"mount --bind {bundle.root} {tmp_path}/under && (cd {tmp_path}/under && {swap}) && "
        f"{bundle.node}/merge {_NAME}; cat {'old' if link == 'etc' else 'etc'}/ld.so.preload"
    )
    command = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout

    assert "the node's secret" not in said


def test_nobody_in_the_container_can_write_it_and_everybody_can_read_it(make: Callable[[str], Bundle]) -> None:
    told = make("libown.so\n").run(
        "stat -c %a etc/ld.so.preload; grep 'etc/ld.so.preload ro,' /proc/self/mountinfo | tail -1;"
        "echo x 2>/dev/null >>etc/ld.so.preload || echo refused; setpriv --reuid 65534 cat etc/ld.so.preload"
    )

    mode, mounted, refused, *content = told.splitlines()
    assert (mode, refused) == ("444", "refused")
    assert "ro,nosuid,nodev" in mounted
    assert content == [_OURS.strip(), "libown.so", ""]


def test_a_root_file_system_that_is_read_only_is_no_hindrance(make: Callable[[str], Bundle]) -> None:
    bundle = make("libown.so\n")
    bundle.before += f" && mount --bind {bundle.root} {bundle.root} && mount -o remount,bind,ro {bundle.root}"

    assert bundle.run() == f"{_OURS}libown.so\n\n"


def test_nothing_is_left_of_the_mounts_of_the_hook(make: Callable[[str], Bundle]) -> None:
    bundle = make("libown.so\n")

    told = bundle.run(f"grep -c ' {bundle.node} ' /proc/self/mountinfo || true; ls {bundle.node}")

    assert told.split() == ["0", _NAME, "merge"]
    assert sorted(path.name for path in bundle.node.iterdir()) == [_NAME, "merge"]


def test_mounts_that_would_reach_the_node_are_not_made(make: Callable[[str], Bundle]) -> None:
    bundle = make("libown.so\n")
    bundle.before = "mount --make-rprivate / && mount --make-rshared /"

    assert bundle.run() == _OURS


def test_a_container_in_a_user_namespace_has_it_too(make: Callable[[str], Bundle]) -> None:
    bundle = make("libown.so\n")
    bundle.options = ["--user", "--map-root-user"]

    assert bundle.run().startswith(_OURS)
