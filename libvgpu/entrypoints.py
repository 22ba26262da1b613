"""Every entry point of the CUDA driver and what the library does with it, from the tables that the library is built of.

Run by `make generate` to write docs/entry-points.md, and with nvmlpoints.py docs/nvml-entry-points.md; with --check by
`make lint`. Works in a checkout only.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from libvgpu import nvmlpoints

_HERE = Path(__file__).resolve().parent
_DOCUMENT = _HERE.parent / "docs" / "entry-points.md"
_EFFECTS = {
    "charged": "hooked: takes or gives back device memory, which is charged",
    "launched": "hooked: starts work on the GPU, which is paid in GPU time",
    "followed": "hooked: decides how long something that is charged is held",
    "shown": "hooked: answers with the share in the place of the card",
    "guarded": "hooked: the share is read here, and look-ups lead to hooks",
    "refused": "refused: memory or work would go uncounted",
}
_TWINS = {"2": "_ptsz", "_STREAM": "_ptsz", "_PTSZ": "_ptsz", "_PTDS": "_ptds"}


@dataclass(frozen=True)
class EntryPoint:
    """One exported symbol: what becomes of it (a key of the hooks' effects, or "passed"), and why."""

    symbol: str
    effect: str
    reason: str


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _with_twin(symbol: str, kind: str) -> list[str]:
    return [symbol, symbol + _TWINS[kind]] if kind in _TWINS else [symbol]


def entry_points() -> list[EntryPoint]:
    """Return every known entry point, sorted by symbol."""
    found = [
        EntryPoint(name, effect, _EFFECTS[effect])
        for kind, symbol, effect in re.findall(
            r"^HOOK(2?|_PTDS)\((\w+), (\w+)\)$", _read("cuda/hooks.def"), re.MULTILINE
        )
        for name in _with_twin(symbol, kind)
    ]
    passed = _read("cuda/passed.def")
    reasons = dict(re.findall(r'^REASON\((\w+), "(.+)"\)$', passed, re.MULTILINE))
    found += [
        EntryPoint(name, "passed", reasons[reason])
        for kind, symbol, reason in re.findall(r"^PASSED(\w*)\((\w+), (\w+)\)$", passed, re.MULTILINE)
        for name in _with_twin(symbol, kind)
    ]
    return sorted(found, key=lambda entry: entry.symbol)


def declared_symbols() -> list[str]:
    """Return the symbols whose prototypes the library knows (include/abi/cuda_api.def)."""
    lines = re.findall(r"^CUDA_API(\w*)\((\w+),", _read("include/abi/cuda_api.def"), re.MULTILINE)
    return sorted(name for kind, symbol in lines for name in _with_twin(symbol, kind))


def flaws(entries: list[EntryPoint]) -> list[str]:
    """Return what is wrong with the tables: each symbol stands in one of them once, with the twin that it needs."""
    symbols = [entry.symbol for entry in entries]
    twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    hooked = {entry.symbol for entry in entries if entry.effect != "passed"}
    declared = declared_symbols()
    problems = [f"{symbol}: found twice, expected in one of hooks.def and passed.def" for symbol in twice]
    problems += [
        f"{symbol}: found in cuda_api.def alone, expected in hooks.def or passed.def too"
        for symbol in declared
        if symbol not in symbols
    ]
    problems += [
        f"{symbol}: found passed through, expected a hook as for {symbol[:-5]}"
        for symbol in declared
        if symbol[-5:] in ("_ptsz", "_ptds") and symbol[:-5] in hooked and symbol not in hooked
    ]
    bases = {_base(symbol) for symbol in hooked}
    problems += [
        f"{entry.symbol}: found passed through, expected a hook: look-ups by version find hooks of that name alone"
        for entry in entries
        if entry.effect == "passed" and _base(entry.symbol) in bases
    ]
    return problems


def _base(symbol: str) -> str:
    """Return the name without its version and its kind of default stream, as the library tells versions apart."""
    return re.sub(r"(_v\d+)?(_ptsz|_ptds)?$", "", symbol)


def document(entries: list[EntryPoint]) -> str:
    """Return the page: how many of each kind, then one table per kind."""
    count = {effect: sum(entry.effect == effect for entry in entries) for effect in (*_EFFECTS, "passed")}
    lines = [
        "# Entry points of the CUDA driver",
        "",
        "<!-- Written by `make generate` from libvgpu/cuda/hooks.def and passed.def: change those. -->",
        "",
        f"All {len(entries)} symbols that a driver exports up to CUDA 13.5, their older versions and their",
        "per-thread-default-stream twins (`_ptsz`, `_ptds`) included. Whichever way an application reaches one",
        "(linked, `dlsym`, `dlvsym`, `cuGetProcAddress`), it gets the hook.",
        "",
        "A function that is in no table here comes from a newer driver. If it is a newer version of a hooked one, or",
        'has "Alloc" or "Launch" in its name, look-ups say that the driver does not have it (`cuGetProcAddress`), or',
        "give a function that returns `CUDA_ERROR_NOT_SUPPORTED` (`dlsym`): so it cannot be used to get around the",
        "share, nor be called with wrong arguments. Any other is passed through.",
        "",
        "| what | symbols |",
        "|---|---|",
    ]
    lines += [f"| {text} | {count[effect]} |" for effect, text in _EFFECTS.items()]
    lines += [f"| passed through, for the reasons below | {count['passed']} |"]
    for effect, text in _EFFECTS.items():
        lines += ["", f"## {text[0].upper()}{text[1:]}", ""]
        lines += [f"- `{entry.symbol}`" for entry in entries if entry.effect == effect]
    lines += ["", "## Passed through"]
    for reason in dict.fromkeys(entry.reason for entry in entries if entry.effect == "passed"):
        lines += ["", f"### {reason[0].upper()}{reason[1:]}", ""]
        lines += [f"- `{entry.symbol}`" for entry in entries if entry.reason == reason and entry.effect == "passed"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or with --check say whether they are out of date; the exit status is 1 for any flaw."""
    parser = argparse.ArgumentParser(description="Write docs/entry-points.md from the tables of hooks.")
    parser.add_argument("--check", action="store_true", help="fail if the page is not what would be written")
    entries = entry_points()
    problems = [*flaws(entries), *nvmlpoints.flaws()]
    check = parser.parse_args().check
    for path, text in ((_DOCUMENT, document(entries)), (nvmlpoints.DOCUMENT, nvmlpoints.document())):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(f"docs/{path.name}: out of date; run make generate")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
