"""The stub driver's command line: `python -m libvgpu.stub create DIR --gpu NAME:10GiB` and `show DIR`.

For people who look around, and for scripts that check what a card itself counted.
"""

import argparse
import dataclasses
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from api.errors import VGPUError
from api.quantities import format_bytes, parse_bytes
from libvgpu.stub.cardfiles import inject_xid, read_card
from libvgpu.stub.cards import StubCard, StubGPU, StubSettings
from libvgpu.stub.roots import create_driver_root

NAMESPACE = uuid.UUID("5f1d0c0e-9f56-4c0a-8a43-6b1a6f0c9d11")
"""Of the UUIDs that are made from a card's number and name when none is given."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (VGPUError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libvgpu.stub", description="Simulated GPUs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a driver root with simulated cards")
    create.add_argument("directory", type=Path, metavar="DIR")
    create.add_argument(
        "--gpu", action="append", required=True, metavar="NAME:MEMORY[:UUID]", help="such as 'NVIDIA H100:80Gi'"
    )
    create.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="such as context_bytes=1048576",
    )
    create.set_defaults(run=_create)
    show = commands.add_parser("show", help="what the cards themselves counted")
    show.add_argument("directory", type=Path, metavar="DIR", help="a driver root, or its dev folder")
    show.add_argument("--json", action="store_true", help="for programs")
    show.set_defaults(run=_show)
    xid = commands.add_parser("xid", help="let a card report an Xid")
    xid.add_argument("card", type=Path, metavar="FILE", help="DIR/dev/nvidiaN")
    xid.add_argument("number", type=int)
    xid.set_defaults(run=_xid)
    return parser


def _create(options: argparse.Namespace) -> int:
    settings = StubSettings(**{name: int(value) for name, _, value in (s.partition("=") for s in options.setting)})
    gpus = [_gpu(index, text, settings) for index, text in enumerate(options.gpu)]
    create_driver_root(options.directory, gpus)
    for index, gpu in enumerate(gpus):
        print(f"{options.directory}/dev/nvidia{index}: {gpu.name}, {format_bytes(gpu.memory_bytes)}, {gpu.uuid}")
    return 0


def _gpu(index: int, text: str, settings: StubSettings) -> StubGPU:
    name, _, rest = text.partition(":")
    memory, _, identity = rest.partition(":")
    if not name or not memory:
        raise ValueError(f"--gpu {text!r}: expected NAME:MEMORY[:UUID]")
    # GiB and Gi mean the same to people; quantities know only the latter.
    memory_bytes = parse_bytes(memory.removesuffix("B") if memory.endswith("iB") else memory, f"--gpu {text!r}")
    identity = identity or f"GPU-{uuid.uuid5(NAMESPACE, f'{index}:{name}')}"
    return StubGPU(name=name, memory_bytes=memory_bytes, uuid=identity, settings=settings)


def _show(options: argparse.Namespace) -> int:
    folder = options.directory / "dev" if (options.directory / "dev").is_dir() else options.directory
    cards = [read_card(path) for path in sorted(folder.glob("nvidia[0-9]*"), key=lambda path: (len(path.name), path))]
    if options.json:
        print(json.dumps([_plain(card) for card in cards], indent=2))
        return 0
    for card in cards:
        _print_card(card)
    return 0 if cards else 1


def _plain(card: StubCard) -> dict[str, Any]:
    return {**dataclasses.asdict(card), "path": str(card.path)}


def _print_card(card: StubCard) -> None:
    print(f"{card.path}: {card.name}, {card.uuid}")
    print(f"  memory {_mib(card.used_bytes)} of {_mib(card.memory_bytes)} MiB, peak {_mib(card.peak_bytes)} MiB")
    print(f"  engine {card.gpu_time_ns / 1e9:.3f} s, changed hands {card.engine_changes} times")
    for process in card.processes:
        state = "alive" if process.alive else "ended"
        print(
            f"  {state} pid {process.pid} ({process.comm} on {process.hostname}): {_mib(process.memory_bytes)} MiB,"
            f" peak {_mib(process.peak_bytes)} MiB, GPU time {process.gpu_time_ns / 1e9:.3f} s,"
            f" {process.launches} launches, {process.out_of_memory} times out of memory"
        )


def _mib(value_bytes: int) -> str:
    return f"{value_bytes / (1 << 20):,.1f}"


def _xid(options: argparse.Namespace) -> int:
    inject_xid(options.card, options.number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
