"""`dra-driver share`: what an operator sees of the shares of a node."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dra_driver import sharing
from dra_driver.cli import main
from libvgpu.shares import Limits, Policy, ProcessUsage, create_share, read_books


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("claim-a-0", "claim-b-0"):
        limits = Limits(name, "GPU-1", 2 << 30, cores_percent=25, ceiling_percent=25, policy=Policy.FIXED)
        create_share(tmp_path / "shares" / name, limits)
    return tmp_path


def test_list_has_a_line_for_each_share(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "list", "--state-dir", str(state)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["SHARE", "DEVICE", "MEMORY", "USED"]
    assert first.split()[:7] == ["claim-a-0", "GPU-1", "2Gi", "0Mi", "0Mi", "25", "Fixed"]
    assert second.startswith("claim-b-0")


def test_show_finds_a_share_by_the_start_of_its_name(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "show", "claim-a", "--state-dir", str(state), "-o", "json"]) == 0
    (share,) = json.loads(capsys.readouterr().out)
    assert share["limits"]["memory_bytes"] == 2 << 30
    assert share["books"]["used_bytes"] == 0


def test_a_name_of_several_shares_is_refused_with_all_of_them(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "show", "claim", "--state-dir", str(state)]) == 2
    expected = "dra-driver: share: found 2 with the name 'claim', expected one of: claim-a-0, claim-b-0\n"
    assert capsys.readouterr().err == expected


def test_a_damaged_share_is_listed_with_its_problem(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "shares" / "claim-a-0" / "limits").write_bytes(b"garbage")
    assert main(["share", "list", "--state-dir", str(state)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("claim-a-0  unreadable: ")
    assert main(["share", "show", "claim-a-0", "--state-dir", str(state)]) == 1


def test_a_missing_state_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "list", "--state-dir", str(tmp_path / "none")]) == 2
    assert f"found no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_a_name_on_a_node_without_shares_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "show", "claim", "--state-dir", str(tmp_path)]) == 2
    expected = f"dra-driver: share: found 0 with the name 'claim', expected one, but {tmp_path} has no shares\n"
    assert capsys.readouterr().err == expected


def test_who_may_not_read_the_shares_is_told_so(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def iterdir(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert main(["share", "list", "--state-dir", str(state)]) == 1
    expected = f"dra-driver: {state}/shares: found Permission denied, expected to be run by root\n"
    assert capsys.readouterr().err == expected


def test_what_a_tenant_calls_its_processes_does_not_command_the_terminal(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = ProcessUsage(7, 1, 1, 0, 0, 0, 0, 0, command="\x1b]2;evil\a\n")
    books = replace(read_books(state / "shares" / "claim-a-0"), processes=(process,))
    monkeypatch.setattr(sharing, "read_books", lambda _directory: books)
    assert main(["share", "show", "claim-a", "--state-dir", str(state)]) == 0
    assert "books.processes[0].command: \\x1b]2;evil\\x07\\x0a\n" in capsys.readouterr().out
