"""Tables of figures, and writing them into docs/performance.md between markers. Called by the benchmarks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"


@dataclass(frozen=True)
class Found:
    """What a figure was found to be."""

    text: str
    spread: str
    """Over the runs, or over all windows of a second."""
    bar: str


@dataclass(frozen=True)
class Case:
    """A figure, and how to find it."""

    figure: str
    measure: Callable[[], Found]


def table(rows: Iterable[tuple[str, Found]]) -> str:
    """Return figures, and what they were found to be, as a table in Markdown."""
    lines = ["| figure | found | spread | bar |", "|---|---|---|---|"]
    lines += [f"| {figure} | {found.text} | {found.spread} | {found.bar} |" for figure, found in rows]
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Put text between the markers of this name in the document, at its end if they are not there yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = DOCUMENT.read_text(encoding="utf-8")
    if begin not in document:
        document = f"{document.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = document.split(begin, 1)
    after = rest.split(end, 1)[1]
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
