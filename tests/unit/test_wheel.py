"""The distribution: what a user installs holds the library and what reads its layout, and no test equipment."""

import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_a_wheel_holds_the_built_library_and_no_test_equipment(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path), str(_ROOT)], check=True, capture_output=True)
    (file,) = tmp_path.glob("dra_driver_vgpu-*-py3-none-linux_*.whl")
    names = zipfile.ZipFile(file).namelist()
    assert {"libvgpu/_native/libvgpu.so", "libvgpu/include/vgpu/layout.h", "dra_driver/cli.py"} <= set(names)
    assert [name for name in names if "/stub/" in name or name.endswith(".c") or name.startswith("tests/")] == []
