"""Labels of SELinux on what is mounted into containers; this machine need not have any."""

import errno
import os
from pathlib import Path

import pytest

from kubeletplugin.hardware.labels import label_for_containers

OURS = b"system_u:object_r:container_file_t:s0\0"


class Labels:
    """What a kernel with SELinux keeps of each file."""

    def __init__(self, error: int | None = None) -> None:
        self.by_file: dict[Path, bytes] = {}
        self.changes = 0
        self.error = error

    def get(self, path: Path, _name: str, *, follow_symlinks: bool) -> bytes:
        assert not follow_symlinks
        if self.error == errno.ENODATA:
            raise OSError(self.error, os.strerror(self.error))
        return self.by_file.get(path, b"system_u:object_r:var_lib_t:s0\0")

    def set(self, path: Path, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        assert (name, follow_symlinks) == ("security.selinux", False)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.by_file[path] = value
        self.changes += 1


def use(monkeypatch: pytest.MonkeyPatch, labels: Labels) -> Labels:
    monkeypatch.setattr(os, "getxattr", labels.get)
    monkeypatch.setattr(os, "setxattr", labels.set)
    return labels


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "shares/claim-0").mkdir(parents=True)
    (tmp_path / "shares/claim-0/limits").touch()
    return tmp_path / "shares"


def test_a_folder_and_what_is_in_it_are_labelled_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = use(monkeypatch, Labels())

    label_for_containers(state)
    label_for_containers(state)

    assert labels.by_file == dict.fromkeys([state, state / "claim-0", state / "claim-0/limits"], OURS)
    assert labels.changes == 3


def test_a_system_without_labels_is_left_as_it_is(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    labels = use(monkeypatch, Labels(errno.ENODATA))
    label_for_containers(state)
    assert (labels.by_file, caplog.records) == ({}, [])


def test_a_label_that_cannot_be_set_is_told(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Labels(errno.EPERM))
    label_for_containers(state)
    assert [record.getMessage() for record in caplog.records] == [
        "SELinux label not set: containers with a share may get no GPU"
    ]
