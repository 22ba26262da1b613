"""The command line: what it takes, and what it says to who gets it wrong."""

import os
import subprocess
import sys

import pytest

from dra_driver.cli import main
from dra_driver.settings import FILE_ONLY, CommonOptions, ControllerOptions, NodeAgentOptions


@pytest.fixture(autouse=True)
def wide_terminal_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help is broken into lines, also within words, as wide as the terminal is."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def _help(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "kind"), [("controller", ControllerOptions), ("node-agent", NodeAgentOptions)], ids=str
)
def test_each_setting_has_a_flag_that_says_what_it_is(
    command: str, kind: type[CommonOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    said = _help(capsys, command)
    for name, field in kind.model_fields.items():
        assert (f"--{name.replace('_', '-')} " in said) == (name not in FILE_ONLY)
        assert (str(field.description) in said) == (name not in FILE_ONLY)


def test_the_help_says_what_a_setting_is_that_nobody_gives(capsys: pytest.CaptureFixture[str]) -> None:
    said = _help(capsys, "node-agent")
    assert "default: /var/run/cdi" in said
    assert "default: 256Mi" in said
    assert "default: kata*,runsc*,gvisor*" in said
    assert "default: true" in _help(capsys, "controller")


def test_flags_reach_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node-agent", "--node-name", "n", "--context-bytes", "2Ti", "--listen", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "dra-driver: setting listen (command line): found 'nowhere', "
        'expected address:port such as ":9400", "127.0.0.1:9400" or "[::1]:9400"\n'
        "dra-driver: setting context_bytes (command line): found '2Ti', "
        "expected less than or equal to 1073741824\n"
    )


@pytest.mark.parametrize(
    ("arguments", "argument", "found"),
    [
        (["claim", "train", "-n", ""], "-n/--namespace", "''"),
        (["pod", ""], "name", "''"),
        (["claim", "../nodes"], "name", "'../nodes'"),
    ],
)
def test_explain_refuses_what_cannot_be_a_name(
    arguments: list[str], argument: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["explain", *arguments])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    expected = f"found {found}, expected the name of an object in the cluster"
    assert line == f"dra-driver explain: error: argument {argument}: {expected}"


@pytest.mark.parametrize("found", ["nan", "inf", "-1", "5m"])
def test_a_drain_waits_for_a_number_of_seconds(found: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["device", "drain", "n1", "gpu-0", f"--timeout-s={found}"])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    expected = f"found {found!r}, expected a number of seconds, 0 or above"
    assert line == f"dra-driver device drain: error: argument --timeout-s: {expected}"


def test_who_reads_no_further_ends_the_program_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        program = [sys.executable, "-m", "dra_driver", "crds"]
        ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
