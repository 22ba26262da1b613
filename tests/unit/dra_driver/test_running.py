"""`dra-driver run`: a command in a share of a simulated GPU of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import names
from dra_driver import running
from libvgpu.stub import StubGPU, create_driver_root

_UUID = "GPU-11111111-2222-3333-4444-555555555555"
_OTHER = "GPU-66666666-7777-8888-9999-000000000000"
_DEVICES = f"0 = {_UUID} (Simulated GPU), 1 = {_OTHER} (Simulated GPU)"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("driver-root")
    gpus = [StubGPU(name="Simulated GPU", memory_bytes=10 << 30, uuid=uuid) for uuid in (_UUID, _OTHER)]
    create_driver_root(root, gpus)
    return root


@pytest.fixture
def shares(tmp_path: Path) -> Iterator[Path]:
    """Where the shares of these runs live; empty again at the end."""
    folder = tmp_path / "shares"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def _command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dra_driver", "run", "--driver-root", str(root), *arguments]


def _environment(shares: Path) -> dict[str, str]:
    return {**os.environ, names.ENV_RUNTIME_DIR: str(shares)}


def _run(shares: Path, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(root, *arguments), env=_environment(shares), capture_output=True, text=True, check=False
    )


def test_nvidia_smi_shows_a_card_of_the_share_s_size(shares: Path, root: Path) -> None:
    done = _run(shares, root, "--memory", "2Gi", "--cores", "25", "--", "nvidia-smi")
    assert done.returncode == 0, done.stderr
    assert "/ 2048MiB" in done.stdout


def test_only_the_share_s_device_is_listed(shares: Path, root: Path) -> None:
    listed = _run(shares, root, "--device", "1", "--", "nvidia-smi", "-L").stdout
    assert listed == f"GPU 0: Simulated GPU (UUID: {_OTHER})\n"


def test_the_exit_status_is_the_command_s(shares: Path, root: Path) -> None:
    assert _run(shares, root, "--", "sh", "-c", "exit 7").returncode == 7
    assert _run(shares, root, "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_a_signal_is_passed_on_to_the_command(shares: Path, root: Path) -> None:
    script = "trap 'echo ended; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    command = _command(root, "--", "sh", "-c", script)
    with subprocess.Popen(command, env=_environment(shares), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "ended\n"
    assert process.returncode == 9


class InterruptedStart(subprocess.Popen[bytes]):
    """A command during whose start a signal comes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_that_comes_while_the_command_starts_is_passed_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: missed.append(number))
    monkeypatch.setattr(subprocess, "Popen", InterruptedStart)
    try:
        with (tmp_path / "lock").open("w") as lock:
            status = running.run_command(["sleep", "10"], {"PATH": os.defpath}, lock.fileno())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (status, missed) == (128 + signal.SIGUSR1, [])


def test_commands_with_one_name_join_one_share(shares: Path, root: Path) -> None:
    command = _command(root, "--share", "team", "--memory", "1Gi", "--", "sh", "-c", "echo ready; read line")
    with subprocess.Popen(
        command, env=_environment(shares), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        joined = _run(shares, root, "--share", "team", "--", "nvidia-smi")
        refused = _run(shares, root, "--share", "team", "--memory", "2Gi", "--", "true")
        first.stdin.close()
    assert "/ 1024MiB" in joined.stdout
    assert refused.returncode == 2
    assert refused.stderr == (
        "dra-driver: --memory: found 2Gi, but share team exists with 1Gi: expected the same, or another --share\n"
    )


def test_a_share_whose_run_was_killed_is_removed_by_the_next_one(shares: Path, root: Path) -> None:
    command = _command(root, "--share", "left", "--", "sh", "-c", "echo ready; read line")
    process = subprocess.Popen(
        command, env=_environment(shares), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    # The command lives on, and holds its share.
    assert _run(shares, root, "--", "true").returncode == 0
    assert (shares / "left").exists()
    process.stdin.close()
    process.stdout.read()  # until the command has ended too
    process.stdout.close()
    assert _run(shares, root, "--", "true").returncode == 0
    assert not (shares / "left").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "20Gi"], f"--memory: found 20Gi, expected at most 10Gi of {_UUID}"),
        (
            ["--memory", "much"],
            '--memory: found \'much\', expected a quantity of memory above 0 such as "8Gi" or "500Mi"',
        ),
        (["--cores", "0"], "--cores: found 0, expected a whole number from 1 to 100 (percent of a device)"),
        (["--cores", "101"], "--cores: found 101, expected a whole number from 1 to 100 (percent of a device)"),
        (
            ["--policy", "Fixed"],
            "--policy: found Fixed without --cores, expected --cores with it: the cap that it fixes",
        ),
        (["--share", "../up"], "--share: found '../up', expected at most 63 letters, digits, - and _"),
        (["--device", "7"], f"--device: found '7', expected the index or UUID of one of: {_DEVICES}"),
    ],
)
def test_wrong_input_is_refused_with_what_was_expected(
    shares: Path, root: Path, arguments: list[str], message: str
) -> None:
    done = _run(shares, root, *arguments, "--", "true")
    assert (done.returncode, done.stderr) == (2, f"dra-driver: {message}\n")


def test_a_command_that_does_not_exist_is_named(shares: Path, root: Path) -> None:
    done = _run(shares, root, "--", "no-such-program")
    expected = "dra-driver: command: found 'no-such-program', expected a program on the PATH or its path\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_device_is_chosen_by_its_uuid(shares: Path, root: Path) -> None:
    done = _run(
        shares, root, "--device", _OTHER.lower(), "--memory", "1Gi", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
    )
    assert done.stdout == f"{_OTHER}\n"
