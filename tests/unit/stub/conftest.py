"""Simulated machines with cards, and processes that use them, for the tests of the stub driver."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libvgpu.stub import StubCard, StubGPU, StubSettings, create_driver_root, read_card, stub_environment

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
UUID = "GPU-00000000-1111-4222-8333-444444444444"
SECOND_UUID = "GPU-99999999-1111-4222-8333-444444444444"
MIB = 1 << 20
TIMEOUT_S = 60


class Process:
    """A process of a test: a script that says JSON lines and waits for lines."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen

    def heard(self) -> dict[str, Any]:
        """Return what the script says next."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            _, errors = self.popen.communicate(timeout=TIMEOUT_S)
            raise AssertionError(f"the process said nothing and ended with {self.popen.returncode}:\n{errors}")
        said: dict[str, Any] = json.loads(line)
        return said

    def go_on(self) -> None:
        """Let the script continue behind wait_for_line()."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def finish(self) -> list[dict[str, Any]]:
        """Wait for the end; return what was said until then."""
        output, errors = self.popen.communicate(timeout=TIMEOUT_S)
        assert self.popen.returncode == 0, errors
        return [json.loads(line) for line in output.splitlines()]

    def kill(self) -> None:
        """End the process by SIGKILL, and wait for that."""
        self.popen.kill()
        self.popen.communicate(timeout=TIMEOUT_S)


class Machine:
    """A driver root, and what runs on it."""

    def __init__(self, root: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
        self.root = root
        self._start = start

    def card(self, index: int = 0) -> StubCard:
        """Return what a card counted."""
        return read_card(self.card_file(index))

    def card_file(self, index: int = 0) -> Path:
        """Return the file of a card."""
        return self.root / "dev" / f"nvidia{index}"

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a process on this machine is started with."""
        return {**os.environ, **stub_environment(self.root), "PYTHONPATH": f"{HERE}:{ROOT}", **more}

    def start(self, script: str, *, before: tuple[str, ...] = (), **environment: str) -> Process:
        """Start a Python script; `before` are words in front of the command."""
        text = "from cuda import *\n" + textwrap.dedent(script)
        return Process(self._start([*before, sys.executable, "-c", text], self.environment(**environment)))

    def run(self, script: str, **environment: str) -> dict[str, Any]:
        """Run a script that says one thing; return that."""
        said = self.start(script, before=(), **environment).finish()
        assert len(said) == 1
        return said[0]

    def program(self, *command: str, expect: int = 0) -> str:
        """Run a program of the driver root; return its output."""
        done = subprocess.run(
            [str(self.root / "usr/bin" / command[0]), *command[1:]],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout


MakeMachine = Callable[..., Machine]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that a card counts, which no event tells of."""
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, "it never became so"
        time.sleep(0.01)


@pytest.fixture
def make_machine(tmp_path: Path) -> Iterator[MakeMachine]:
    """Make machines: memory sizes of cards in bytes, and settings of all of them. Ends what was started on them."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        popen = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(popen)
        return popen

    def make(*memory_bytes: int, **settings: int) -> Machine:
        uuids = (UUID, SECOND_UUID)
        gpus = [
            StubGPU(f"Stub GPU {index}", size, uuids[index], settings=StubSettings(**settings))
            for index, size in enumerate(memory_bytes or (1024 * MIB,))
        ]
        create_driver_root(tmp_path / "root", gpus)
        return Machine(tmp_path / "root", start)

    yield make
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    """A machine with one card of 1 GiB."""
    return make_machine()
