"""Every entry point of NVML and what the library does with it, from nvml/hooks.def and nvml/passed.def.

Called by libvgpu.entrypoints, which has the same for the CUDA driver.
"""

import re
from pathlib import Path

_HERE = Path(__file__).resolve().parent
DOCUMENT = _HERE.parent / "docs" / "nvml-entry-points.md"
_SHOWN = "Hooked: answers with the share in the place of the card"
_REFUSED = "Refused (`NVML_ERROR_NOT_SUPPORTED`): would show what the neighbours do"


def _found(pattern: str, table: str) -> list[tuple[str, str]]:
    return re.findall(pattern, (_HERE / table).read_text(encoding="utf-8"), re.MULTILINE)


def nvml_entry_points() -> dict[str, list[str]]:
    """Return the symbols by what becomes of them, in words."""
    found: dict[str, list[str]] = {_SHOWN: [], _REFUSED: []}
    for kind, symbol in _found(r"^(HOOK|REFUSED)\((\w+)\)$", "nvml/hooks.def"):
        found[_SHOWN if kind == "HOOK" else _REFUSED].append(symbol)
    reasons = dict(_found(r'^REASON\((\w+), "(.+)"\)$', "nvml/passed.def"))
    for symbol, reason in _found(r"^PASSED\((\w+), (\w+)\)$", "nvml/passed.def"):
        found.setdefault(f"Passed through: {reasons[reason]}", []).append(symbol)
    return {what: sorted(symbols) for what, symbols in found.items()}


def flaws() -> list[str]:
    """Return what is wrong with the tables: each symbol that is declared or named stands in them once."""
    symbols = [symbol for group in nvml_entry_points().values() for symbol in group]
    declared = [symbol for symbol, _ in _found(r"^NVML_API\((\w+)(,)", "include/abi/nvml_api.def")]
    twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    return [f"{symbol}: found twice, expected once in nvml/hooks.def and nvml/passed.def" for symbol in twice] + [
        f"{symbol}: found in nvml_api.def alone, expected in nvml/hooks.def or nvml/passed.def too"
        for symbol in declared
        if symbol not in symbols
    ]


def document() -> str:
    """Return the page: how many of each kind, then one list per kind."""
    groups = nvml_entry_points()
    lines = [
        "# Entry points of NVML",
        "",
        "<!-- Written by `make generate` from libvgpu/nvml/hooks.def and passed.def: change those. -->",
        "",
        f"All {sum(map(len, groups.values()))} symbols that NVML exports up to CUDA 13. What would show a container",
        "what its neighbours do is answered with the share's own figures, or refused. A function that is in no list",
        "here is passed through.",
        "",
        "| what | symbols |",
        "|---|---|",
        *(f"| {what} | {len(symbols)} |" for what, symbols in groups.items()),
    ]
    for what, symbols in groups.items():
        lines += ["", f"## {what}", "", *(f"- `{symbol}`" for symbol in symbols)]
    return "\n".join(lines) + "\n"
