"""Where the built C library lies: in an installed wheel, or in the build folder of a checkout.

Called by `dra-driver run` and by the node agent when it installs the library on its node.
"""

from pathlib import Path

from api import names
from api.errors import StateError

_PACKAGE = Path(__file__).parent
_NAME = "libvgpu.so"


def gate_paths(library: Path) -> tuple[Path, ...]:
    """Return what stands in the place of the driver's libraries in a container (libvgpu/gate), built with a library."""
    return tuple(path for name in names.GATED_LIBRARIES if (path := library.parent / "gate" / name).is_file())


def hook_path(library: Path) -> Path:
    """Return the hook that keeps an image's own preload file (libvgpu/hook), built with a library, if it was built."""
    return library.parent / "gate" / "merge"


def library_path() -> Path:
    """Return the path of libvgpu.so.

    Raises:
        StateError: it was neither packaged nor built.
    """
    packaged = _PACKAGE / "_native" / _NAME  # the gate lies beside it, in both places
    built = _PACKAGE.parent / "build" / _NAME
    for path in (packaged, built):
        if path.is_file():
            return path
    raise StateError(f"{_NAME}: found neither {packaged} nor {built}, expected one of them (make build)")
