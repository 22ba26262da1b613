"""Build hook: compiles the interception library and puts it into the wheel.

Called by hatchling. The wheel carries `libvgpu/_native/libvgpu.so`, the gate and the hook; an editable install uses
what is in `build/` of the checkout.
"""

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface[Any]):
    """Runs `make -C libvgpu` and marks the wheel as one of this platform, for any Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the built library to a wheel; an editable install needs nothing."""
        if version == "editable":
            return
        root = Path(self.root)
        release = os.environ.get("VGPU_RELEASE_LIBRARY")
        if release:  # make release: compiled for the oldest C library that we support, maybe on another processor
            library = Path(release)
            platform = f"manylinux_2_17_{os.environ['VGPU_RELEASE_ARCHITECTURE']}"
        else:
            output = root / "build" / "wheel"
            subprocess.run(["make", "-C", str(root / "libvgpu"), f"BUILD={output}", "all"], check=True, env=os.environ)
            library = output / "libvgpu.so"
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        for name in ("libvgpu.so", "gate/libcuda.so.1", "gate/libnvidia-ml.so.1", "gate/merge"):
            build_data["force_include"][str(library.parent / name)] = f"libvgpu/_native/{name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
