"""Files of the agent: whole or not at all, one holder per lock, a library that is never overwritten."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.errors import StateError
from kubeletplugin import files
from kubeletplugin.files import FileLock, remove, remove_tree, write_durably
from kubeletplugin.state.libraries import install_library


def test_a_write_replaces_the_file_and_not_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    with path.open("rb") as reader:
        write_durably(path, b"new")

        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o077)
    try:
        write_durably(tmp_path / "file", b"", 0o644)
    finally:
        os.umask(former)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_durably(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_removing_takes_what_a_crash_left_as_well(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_text("half")

    assert remove(tmp_path / "file")
    assert not remove(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_removing_a_folder_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    share = tmp_path / "share"
    (share / "inner").mkdir(parents=True)
    (share / "inner/file").touch()
    (share / "link").symlink_to(tmp_path / "outside")

    assert remove_tree(share)
    assert not remove_tree(share)
    assert (tmp_path / "outside/kept").exists()


def test_a_lock_has_one_holder_who_is_named(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.acquire()

    with pytest.raises(StateError) as caught:
        FileLock(tmp_path / "lock").acquire()

    assert str(caught.value) == f"{tmp_path}/lock: held by process {os.getpid()}, expected no other instance"
    lock.release()
    assert list(tmp_path.iterdir()) == []
    FileLock(tmp_path / "lock").acquire()


def test_a_lock_that_cannot_be_made_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        FileLock(tmp_path / "gone/lock").acquire()

    assert str(caught.value) == f"{tmp_path}/gone/lock: found No such file or directory, expected a file to lock"


def test_a_lock_is_taken_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    lock = FileLock(tmp_path / "lock")
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        lock.acquire()

    with pytest.raises(StateError, match="held by process unknown, expected no other instance"):
        FileLock(tmp_path / "lock").acquire()
    lock.release()


def test_a_lock_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from kubeletplugin.files import FileLock
lock = FileLock(pathlib.Path({str(tmp_path / "lock")!r}))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=f"held by process {holder.pid}"):
            FileLock(tmp_path / "lock").acquire()
        holder.kill()

    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    lock.release()


def test_the_library_has_its_hash_in_its_name_and_a_new_build_another_name(tmp_path: Path) -> None:
    source = tmp_path / "libvgpu.so"
    source.write_bytes(b"one")
    first = install_library(source, tmp_path / "lib")
    inode = first.path.stat().st_ino
    assert install_library(source, tmp_path / "lib") == first
    assert first.path.stat().st_ino == inode  # running containers have it mapped

    source.write_bytes(b"two")
    second = install_library(source, tmp_path / "lib")

    assert first.path.name == "libvgpu-7692c3ad3540.so"
    assert first.path.read_bytes() == b"one"
    assert second.path != first.path
    assert second.preload_path.read_text() == f"/usr/lib/vgpu/{second.path.name}\n"


def test_an_installed_library_that_a_crash_damaged_is_installed_again(tmp_path: Path) -> None:
    source = tmp_path / "libvgpu.so"
    source.write_bytes(b"one")
    installed = install_library(source, tmp_path / "lib")
    installed.path.write_bytes(b"")

    install_library(source, tmp_path / "lib")

    assert installed.path.read_bytes() == b"one"


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"library .*/missing\.so: cannot be installed in .*/lib: \[Errno 2\]"):
        install_library(tmp_path / "missing.so", tmp_path / "lib")


def test_the_generated_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="a development tool")
    from kubeletplugin.proto import generate

    generate.generate(tmp_path)

    assert generate.differences(tmp_path) == []
    (tmp_path / "dra_v1_pb2.py").write_text("changed")
    assert generate.differences(tmp_path) == ["dra_v1_pb2.py"]


class _SlowDisk:
    """Stands for the fsync of a folder: waits until it may end, and fails if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.broken = False
        monkeypatch.setattr(files, "fsync_directory", self)

    def __call__(self, _folder: Path) -> None:
        self.calls += 1
        self.began.release()
        self.may_end.acquire()
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class _WatchedLock:
    """A lock that tells who comes for it."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.asked.release()
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


def test_who_comes_while_a_folder_is_made_durable_shares_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, sync, lock = _SlowDisk(monkeypatch), files.FolderSync(tmp_path), _WatchedLock()
    monkeypatch.setattr(sync, "_lock", lock)
    with ThreadPoolExecutor(11) as pool:
        first = pool.submit(sync)
        disk.began.acquire()
        others = [pool.submit(sync) for _ in range(10)]
        for _ in range(11):
            lock.asked.acquire()
        disk.may_end.release()
        first.result(60)
        disk.began.acquire()
        assert not any(other.done() for other in others), "the first may not have seen their names"
        disk.may_end.release()
        for other in others:
            other.result(60)

    assert disk.calls == 2


def test_a_folder_that_could_not_be_made_durable_is_told_to_each_that_relied_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, sync = _SlowDisk(monkeypatch), files.FolderSync(tmp_path)
    disk.may_end.release(10)
    disk.broken = True
    with pytest.raises(OSError, match="Input/output error"):
        sync()
    with pytest.raises(OSError, match="Input/output error"):
        sync()
    disk.broken = False
    sync()
    assert disk.calls == 3


@pytest.mark.parametrize(
    ("hook", "runs"), [(b"#!/bin/sh\n", True), (b"\x7fELF of another machine", False), (b"", False)]
)
def test_a_hook_that_cannot_be_run_here_is_not_given_to_containers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hook: bytes, runs: bool
) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "libvgpu.so").write_bytes(b"library")
    if hook:
        (tmp_path / "gate/merge").write_bytes(hook)

    library = install_library(tmp_path / "libvgpu.so", tmp_path / "node")

    assert library.hook == (Path(f"{library.path}.merge") if runs else None)
    told = ["an image's own /etc/ld.so.preload is hidden: the hook cannot be run"]
    assert [record.getMessage() for record in caplog.records] == (told if hook and not runs else [])
