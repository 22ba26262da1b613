"""Generates the Python modules of the .proto files beside this script.

Run by `make generate`, and with --check by `make lint`. Needs the development environment (grpcio-tools, mypy-
protobuf). Imports between generated modules are made absolute, because protoc writes them for a flat folder.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = "kubeletplugin.proto"
_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
_FLAT_IMPORT = re.compile(r"^import (\w+_pb2)(?: as (\w+))?$", re.MULTILINE)


def generate(output: Path) -> None:
    """Write the modules of all .proto files to the folder `output`.

    Raises:
        RuntimeError: protoc refused a file; its own message is on stderr.
    """
    sources = sorted(HERE.glob("*.proto"))
    outputs = [f"--{kind}={output}" for kind in ("python_out", "grpc_python_out")]
    stubs = [f"--{kind}=quiet:{output}" for kind in ("mypy_out", "mypy_grpc_out")]
    # Beside the interpreter, whatever the PATH says.
    plugins = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in _PLUGINS]
    arguments = ["protoc", f"-I{HERE}", *plugins, *outputs, *stubs, *map(str, sources)]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed on {', '.join(source.name for source in sources)}")
    for module in output.glob("*_pb2*.py*"):
        module.write_text(_FLAT_IMPORT.sub(_absolute, module.read_text()))


def differences(generated: Path) -> list[str]:
    """Return the names of modules that differ from the committed ones, or that only one side has."""
    names = {path.name for folder in (generated, HERE) for path in folder.glob("*_pb2*.py*")}
    return sorted(name for name in names if _read(generated / name) != _read(HERE / name))


def main() -> int:
    """Generate, or with --check say what would change; the exit status is 1 then."""
    parser = argparse.ArgumentParser(description="Generate the Python modules of the kubelet's gRPC APIs.")
    parser.add_argument(
        "--check", action="store_true", help="fail if the committed modules are not what would be generated"
    )
    if not parser.parse_args().check:
        generate(HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder))
    if stale:
        print(f"out of date: {', '.join(stale)}; run make generate", file=sys.stderr)
    return 1 if stale else 0


def _absolute(match: re.Match[str]) -> str:
    module, alias = match.groups()
    if alias:
        return f"from {PACKAGE} import {module} as {alias}"
    return f"from {PACKAGE} import {module}"


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
