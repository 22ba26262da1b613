"""Builds are kept whole or not at all."""

import threading
from pathlib import Path

import pytest

from deploy.local.caching import build_once, cache_dir, locked


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    def build(target: Path) -> None:
        target.write_text(next(texts))

    texts = iter(["first", "second"])
    build_once(tmp_path / "built", build)
    found = build_once(tmp_path / "built", build)
    assert found.read_text() == "first"


def test_an_aborted_build_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    def abort(target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "built", abort)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".built.lock"] == []


def test_of_two_builds_at_once_one_builds_and_the_other_finds_it(tmp_path: Path) -> None:
    builds: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def build(target: Path) -> None:
        builds.append(threading.current_thread().name)
        begun.set()
        go_on.wait()
        target.write_text("whole")

    threads = [threading.Thread(target=build_once, args=(tmp_path / "built", build)) for _ in range(2)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert builds == [threads[0].name]
    assert (tmp_path / "built").read_text() == "whole"


def test_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("VGPU_CACHE_DIR", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "dra-driver-vgpu"
    monkeypatch.setenv("VGPU_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_lock_that_its_holder_removes_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[str] = []
    seen: list[int] = []

    def hold() -> None:
        for _ in range(50):
            with locked(path, remove=True):
                inside.append("in")
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 200
    assert not path.exists()


def test_who_waits_for_a_lock_is_told_so_and_who_has_it_at_once_is_not(tmp_path: Path) -> None:
    told: list[str] = []
    waits = threading.Event()

    def wait() -> None:
        told.append("waits")
        waits.set()

    def take() -> None:
        with locked(tmp_path / "lock", on_wait=wait):
            told.append("has it")

    with locked(tmp_path / "lock", on_wait=wait):
        assert told == []
        other = threading.Thread(target=take)
        other.start()
        waits.wait()
        assert told == ["waits"]
    other.join()
    assert told == ["waits", "has it"]
