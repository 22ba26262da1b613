"""Finding the built library."""

from pathlib import Path

import pytest

from api.errors import StateError
from libvgpu import paths


def test_the_packaged_library_comes_before_the_built_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "libvgpu"
    monkeypatch.setattr(paths, "_PACKAGE", package)
    built = tmp_path / "build" / "libvgpu.so"
    packaged = package / "_native" / "libvgpu.so"
    with pytest.raises(StateError) as error:
        paths.library_path()
    assert str(error.value) == (f"libvgpu.so: found neither {packaged} nor {built}, expected one of them (make build)")
    for path in (built, packaged):
        path.parent.mkdir(parents=True)
        path.touch()
        assert paths.library_path() == path
