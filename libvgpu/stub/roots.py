"""Driver roots: folders that look like the root of a machine with the driver installed and simulated cards in /dev.

Called by `libvgpu.stub` and its command line.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from api.errors import StateError
from libvgpu.stub.cardfiles import create_card
from libvgpu.stub.cards import StubGPU

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
PROGRAM = "nvidia-smi"
LIBRARY_FOLDER = Path("usr/lib/x86_64-linux-gnu")


def library_directory() -> Path:
    """Return the folder with the built stub driver (`make build`); StateError if it is not there."""
    folder = Path(__file__).parents[2] / "build" / "stub"
    for name in (*LIBRARIES, PROGRAM):
        if not (folder / name).is_file():
            raise StateError(f"{folder / name}: the stub driver is not built; run `make build`")
    return folder


def create_driver_root(path: Path, gpus: Sequence[StubGPU]) -> None:
    """Make `path` a driver root with these cards, all unused; cards that were there are replaced or removed.

    Processes that still use a card that is replaced keep the old one, which nobody else can see any more.
    """
    source = library_directory()
    for name in LIBRARIES:
        _install(source / name, path / LIBRARY_FOLDER / name)
    _install(source / PROGRAM, path / "usr/bin" / PROGRAM)
    devices = path / "dev"
    devices.mkdir(parents=True, exist_ok=True)
    for index, gpu in enumerate(gpus):
        create_card(devices / f"nvidia{index}", index, gpu)
    for old in devices.glob("nvidia[0-9]*"):
        if int(old.name.removeprefix("nvidia")) >= len(gpus):
            old.unlink()


def _install(source: Path, target: Path) -> None:
    """Copy by rename, so that a running process keeps the file that it has mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    temporary.chmod(0o755)
    temporary.replace(target)


def stub_environment(root: Path) -> dict[str, str]:
    """Return the environment variables with which a process of this machine uses the driver root's cards."""
    return {"LD_LIBRARY_PATH": str(root / LIBRARY_FOLDER), "VGPU_STUB_DEV_DIR": str(root / "dev")}
