"""`dra-driver share list|show`: the shares of a node, as their limits and books stand. Called by the CLI."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from api import names
from api.errors import ConfigError, StateError
from api.quantities import format_bytes
from libvgpu.shares import Books, Limits, read_books, read_limits


@dataclass(frozen=True)
class ShareReport:
    """A share's limits and use; `problem` says what could not be read."""

    name: str
    limits: Limits | None
    books: Books | None
    problem: str = ""


def read_shares(state_dir: Path) -> list[ShareReport]:
    """Return all shares under a state folder, by name.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = state_dir / names.SHARES_SUBDIR
    if not state_dir.is_dir():
        raise ConfigError(f"--state-dir: found no folder {state_dir}, expected the state folder of a node agent")
    directories = sorted(folder.iterdir()) if folder.is_dir() else []
    return [_read_share(directory) for directory in directories if directory.is_dir()]


def find_share(state_dir: Path, name: str) -> ShareReport:
    """Return one share, by its name or by the start of it if that is unique.

    Raises:
        ConfigError: no share, or several, have such a name.
    """
    shares = read_shares(state_dir)
    found = [s for s in shares if s.name == name] or [s for s in shares if s.name.startswith(name)]
    if len(found) != 1:
        there = ", ".join(share.name for share in found or shares)
        expected = f"expected one of: {there}" if there else f"expected one, but {state_dir} has no shares"
        raise ConfigError(f"share: found {len(found)} with the name {name!r}, {expected}")
    return found[0]


def format_table(shares: list[ShareReport]) -> str:
    """Return a table with a line for each share."""
    header = ("SHARE", "DEVICE", "MEMORY", "USED", "PEAK", "CORES", "POLICY", "GPU-TIME", "THROTTLED", "PROCESSES")
    rows = [header, *(_row(share) for share in shares)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def format_share(share: ShareReport) -> str:
    """Return all that is known of a share, a fact a line."""
    return "\n".join(f"{key}: {_plain(value)}" for key, value in _flatten(as_json(share)))


def as_json(share: ShareReport) -> dict[str, Any]:
    """Return a share as JSON data; bytes, nanoseconds and percent as whole numbers."""
    limits = asdict(share.limits) | {"policy": share.limits.policy.value} if share.limits else None
    report: dict[str, Any] = {
        "name": share.name,
        "limits": limits,
        "books": asdict(share.books) if share.books else None,
    }
    return report | ({"problem": share.problem} if share.problem else {})


def format_json(shares: list[ShareReport]) -> str:
    """Return shares as a JSON list."""
    return json.dumps([as_json(share) for share in shares], indent=2)


def _read_share(directory: Path) -> ShareReport:
    limits = books = None
    try:
        limits = read_limits(directory)
        books = read_books(directory)
    except StateError as error:
        return ShareReport(directory.name, limits, books, str(error))
    return ShareReport(directory.name, limits, books)


def _row(share: ShareReport) -> tuple[str, ...]:
    limits, books = share.limits, share.books
    if limits is None or books is None:
        return (share.name, f"unreadable: {share.problem}", *[""] * 8)
    return (
        share.name,
        limits.device_uuid,
        format_bytes(limits.memory_bytes),
        _mebibytes(books.used_bytes),
        _mebibytes(books.peak_bytes),
        str(limits.cores_percent),
        limits.policy.value,
        f"{books.gpu_time_ns / 1e9:.1f}s",
        f"{books.throttled_ns / 1e9:.1f}s",
        str(len(books.processes)),
    )


def _mebibytes(value_bytes: int) -> str:
    return f"{value_bytes / (1 << 20):.0f}Mi"


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, content in value.items():
        if isinstance(content, dict):
            yield from _flatten(content, f"{prefix}{key}.")
        elif isinstance(content, list | tuple):
            for index, entry in enumerate(content):
                yield from _flatten(entry, f"{prefix}{key}[{index}].")
        else:
            yield f"{prefix}{key}", content


def _plain(value: object) -> str:
    """Return a value for a terminal: what a tenant calls its processes must not command it."""
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in str(value))
