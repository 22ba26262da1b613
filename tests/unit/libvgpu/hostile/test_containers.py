"""Ways around that start at the container: its environment, its files, its mounts, its root, its programs.

The card's own count says whether they got round.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.libvgpu.hostile.conftest import Attempt, Container

LIMIT = 64 << 20
pytestmark = pytest.mark.no_sanitizer  # nothing of the environment counts, so no runtime can come first
REFUSED = "the GPU is refused\n"

# What the tenant does before it starts the driver, and how that ends: what it gets in MiB, and what the library says.
WAYS = {
    "an empty environment": ("os.environ.clear()", 64, ""),
    "a forged share that the environment names": (
        "forge('/mnt/forged/claim-0'); os.environ['VGPU_SHARES_DIR'] = '/mnt/forged'",
        64,
        "",
    ),
    "a forged share in the environment, and the container's hidden below a mount": (
        "forge('/mnt/forged/claim-0'); os.environ['VGPU_SHARES_DIR'] = '/mnt/forged'; mount('x', '/run', 'tmpfs')",
        None,
        REFUSED,
    ),
    "a forged share beside the agent's": ("forge('/run/vgpu/shares/forged')", None, REFUSED),
    "a link that shows the share twice": ("os.symlink('claim-0', '/run/vgpu/shares/twice')", None, REFUSED),
    "the share under another name": ("os.rename(SHARE, SHARE + '1')", None, REFUSED),
    "a forged share in the place of the agent's": (
        "forge('/run/forged'); os.rename(SHARE, '/run/aside'); os.rename('/run/forged', SHARE)",
        None,
        REFUSED,
    ),
    "forged limits mounted over the agent's": (
        "forge('/mnt/forged'); mount('/mnt/forged/limits', SHARE + '/limits', flags=BIND)",
        None,
        REFUSED,
    ),
    "forged limits mounted over the agent's, read-only": (
        (
            "forge('/mnt/forged'); mount('/mnt/forged/limits', SHARE + '/limits', flags=BIND); "
            "mount(None, SHARE + '/limits', flags=REMOUNT_READ_ONLY)"
        ),
        None,
        REFUSED,
    ),
    "forged books mounted over the agent's": (
        "forge('/mnt/forged'); mount('/mnt/forged/books', SHARE + '/books', flags=BIND)",
        None,
        REFUSED,
    ),
    "limits unmounted": ("assert libc.umount2(os.fsencode(SHARE + '/limits'), 2) == 0", None, REFUSED),
    "no /proc": ("assert libc.umount2(b'/proc', 2) == 0", None, REFUSED),
    "a chroot with a forged share": (
        (
            "forge('/mnt/jail' + SHARE); os.makedirs('/mnt/jail/dev'); open('/mnt/jail/dev/nvidia0', 'w'); "
            "mount('/dev/nvidia0', '/mnt/jail/dev/nvidia0', flags=BIND); os.chroot('/mnt/jail')"
        ),
        None,
        REFUSED,
    ),
    "a chroot with a forged share and a forged /proc": (
        """
forge('/mnt/jail' + SHARE)
for name in ('dev', 'proc/self/fdinfo', 'usr/lib/vgpu'):
    os.makedirs('/mnt/jail/' + name)
open('/mnt/jail/dev/nvidia0', 'w')
mount('/dev/nvidia0', '/mnt/jail/dev/nvidia0', flags=BIND)
open('/mnt/jail/usr/lib/vgpu/libvgpu-test.so', 'w')
for descriptor in range(16):
    open(f'/mnt/jail/proc/self/fdinfo/{descriptor}', 'w').write('pos:\\t0\\nmnt_id:\\t7\\n')
open('/mnt/jail/proc/self/mountinfo', 'w').write(
    ''.join(f'7 1 8:1 /state/{root} /x ro - ext4 x rw\\n' for root in ('lib/libvgpu-test.so',)))
os.chroot('/mnt/jail')
""",
        None,
        REFUSED,
    ),
    "another user": ("os.setgid(65534); os.setuid(65534)", 64, ""),
}


@pytest.fixture(scope="module")
def choices(container: "Container") -> "dict[str, Attempt]":
    """Try all of WAYS."""
    start, refused = "start(); say(grab())", "say(cuda.cuInit(0), grab())"
    return container.attempts({way: f"{code}\n{start if mib else refused}" for way, (code, mib, _) in WAYS.items()})


@pytest.mark.parametrize("way", WAYS)
def test_a_container_cannot_choose_its_share(way: str, choices: "dict[str, Attempt]") -> None:
    _, mib, said = WAYS[way]
    attempt = choices[way]
    assert (attempt.returncode, attempt.stdout) == (0, f"{mib}\n" if mib else "800 0\n"), attempt.stderr
    assert attempt.stderr.endswith(said)
    assert len(attempt.stderr.splitlines()) == (1 if said else 0)
    assert attempt.peak_bytes == (mib or 0) << 20


READ_ONLY = {
    "written": "open(SHARE + '/limits', 'r+b')",
    "truncated": "os.truncate(SHARE + '/limits', 0)",
    "deleted": "os.unlink(SHARE + '/limits')",
    "replaced": "forge('/run/forged'); os.replace('/run/forged/limits', SHARE + '/limits')",
    "made writable": "os.chmod(SHARE + '/limits', 0o666)",
    "deleted with the books": "os.unlink(SHARE + '/books')",
    "replaced with the books": "forge('/run/forged'); os.replace('/run/forged/books', SHARE + '/books')",
    "hidden from the loader": "os.unlink('/etc/ld.so.preload')",
    "hidden from the loader by another file": (
        "open('/etc/none', 'w').close(); os.replace('/etc/none', '/etc/ld.so.preload')"
    ),
    "deleted with the library": "os.unlink('/usr/lib/vgpu/libvgpu-test.so')",
    "written with the library": "open('/usr/lib/vgpu/libvgpu-test.so', 'r+b')",
}


@pytest.fixture(scope="module")
def changes(container: "Container") -> "dict[str, Attempt]":
    """Try all of READ_ONLY."""
    code = "try:\n    {}\nexcept OSError as error:\n    say(error.strerror)\nstart()\nsay(grab())"
    return container.attempts({what: code.format(change) for what, change in READ_ONLY.items()})


@pytest.mark.parametrize("what", READ_ONLY)
def test_what_the_agent_mounted_cannot_be(what: str, changes: "dict[str, Attempt]") -> None:
    why, *got = changes[what].stdout.splitlines()
    assert why in ("Read-only file system", "Device or resource busy")
    assert got == ["64"], changes[what].stderr
    assert changes[what].peak_bytes == LIMIT


_AGAIN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from gpu import *
start()
say(grab())
"""
EXECS = {
    "with an empty environment": "os.execve(sys.executable, arguments, {})",
    "with settings of the loader": (
        "os.execve(sys.executable, arguments, {'LD_PRELOAD': '', 'LD_LIBRARY_PATH': '', 'LD_BIND_NOW': '1', "
        "'LD_DYNAMIC_WEAK': '1', 'GLIBC_TUNABLES': 'glibc.rtld.optional_static_tls=0'})"
    ),
    "through the loader itself": (
        "os.execve('/lib64/ld-linux-x86-64.so.2', ['ld', '--preload', '', '--inhibit-cache', *[sys.executable], "
        "*arguments[1:]], {})"
    ),
    "without new privileges": "assert libc.prctl(38, 1, 0, 0, 0) == 0; os.execve(sys.executable, arguments, {})",
    "as a program that is another user's (setuid)": (
        "import shutil; shutil.copy(PROGRAM, '/mnt/grab'); os.chmod('/mnt/grab', 0o4755); os.setgid(65534); "
        "os.setuid(65534); os.execve('/mnt/grab', ['grab', 'path'], {'LD_PRELOAD': '', 'LD_LIBRARY_PATH': '/mnt'})"
    ),
    "after closing everything": "os.closerange(3, 1 << 16); os.execve(sys.executable, arguments, {})",
    "in a user namespace of its own": (
        "assert libc.unshare(0x10000000) == 0; os.execve(sys.executable, arguments, {})"
    ),
}


@pytest.fixture(scope="module")
def programs(container: "Container", hostile_program: Callable[..., Path]) -> "dict[str, Attempt]":
    """Try all of EXECS."""
    arguments = f"PROGRAM = {str(hostile_program('grab'))!r}\narguments = [sys.executable, '-c', {_AGAIN!r}]\n"
    return container.attempts({way: arguments + code for way, code in EXECS.items()})


@pytest.mark.parametrize("way", EXECS)
def test_a_program_cannot_leave_the_library_by_exec(way: str, programs: "dict[str, Attempt]") -> None:
    assert programs[way] == type(programs[way])(0, "64\n", "", LIMIT)


def test_a_library_that_is_preloaded_by_another_path_is_still_in_the_container(container: "Container") -> None:
    again = _AGAIN.replace("start()\nsay(grab())", "say(cuda.cuInit(0), grab())")
    attempt = container.attempts(
        {
            "": f"""
forge('/run/vgpu/shares/forged')
os.symlink('/usr/lib/vgpu', '/mnt/elsewhere')
os.execve(sys.executable, [sys.executable, '-c', {again!r}], {{'LD_PRELOAD': '/mnt/elsewhere/libvgpu-test.so'}})
"""
        }
    )[""]
    assert (attempt.stdout, attempt.peak_bytes) == ("800 0\n", 0)
    assert attempt.stderr == (
        "libvgpu: the library, preloaded by another path: found no mount of it in /proc/self/mountinfo, expected the "
        "node agent's; the GPU is refused\n"
    )


def test_a_refused_share_is_named_with_what_was_expected(container: "Container") -> None:
    # By the author of a pod, say: a volume at the right place, read-only, with everything as it should be.
    attempt = container.attempts(
        {
            "": """
forge('/mnt/volume/forged')
os.mkdir('/run/vgpu/shares/forged')
mount('/mnt/volume/forged', '/run/vgpu/shares/forged', flags=BIND)
mount('/mnt/volume/forged/limits', '/run/vgpu/shares/forged/limits', flags=BIND)
mount(None, '/run/vgpu/shares/forged/limits', flags=REMOUNT_READ_ONLY)
say(cuda.cuInit(0), grab())
"""
        }
    )[""]
    assert attempt.stdout == "800 0\n"
    assert attempt.stderr == (
        "libvgpu: /run/vgpu/shares/forged/limits: found a file that the node agent did not mount here, expected "
        f"{container.state}/shares/forged/limits of the node, read-only; the GPU is refused\n"
    )


_IN_A_USER_NAMESPACE = """
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert libc.unshare(0x10020000) == 0  # a user namespace, and mounts that belong to it
    os.write(ready[1], b'x')
    os.read(go[0], 1)
    os.setgid(0)
    os.setuid(0)
    say(os.stat(SHARE + '/limits').st_uid, os.stat(SHARE + '/books').st_uid)
    try:
        open(SHARE + '/limits', 'r+b')
    except OSError as error:
        say(error.strerror)
    say(libc.mount(None, os.fsencode(SHARE + '/limits'), None, 4096 | 32, None))
    start()
    say(grab())
    sys.stdout.flush()
    os._exit(0)
os.read(ready[0], 1)
for name in ('uid_map', 'gid_map'):
    with open(f'/proc/{child}/{name}', 'w') as mapping:
        mapping.write('0 100000 65536')
os.write(go[1], b'x')
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_pod_without_the_users_of_the_node_has_its_share_and_cannot_change_it(container: "Container") -> None:
    # As `hostUsers: false` starts it: its root is nobody on the node, and the files of the node belong to nobody.
    attempt = container.attempts({"": f"import os, sys\n{_IN_A_USER_NAMESPACE}"})[""]

    assert attempt.stdout.splitlines() == ["65534 65534", "Permission denied", "-1", "64"], attempt.stderr
