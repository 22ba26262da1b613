"""`make bench-library`: the interception library's figures, as a table in docs/performance.md."""

import argparse
import datetime as dt
import os
import platform
from collections.abc import Sequence

from tests.bench import calls, compute
from tests.bench.rig import rig
from tests.bench.tables import Found, table, write


def main(words: Sequence[str]) -> None:
    """Measure and print the figures whose names have one of `words`, or all of them, which are then also written."""
    rows: list[tuple[str, Found]] = []
    with rig() as machine:
        for case in (*calls.cases(machine), *compute.cases(machine)):
            if words and not any(word in case.figure for word in words):
                continue
            found = case.measure()
            print(f"{case.figure:55} {found.text:24} {found.spread:44} bar: {found.bar}", flush=True)
            rows.append((case.figure, found))
    if words:
        return
    load = os.getloadavg()[1]
    text = (
        "## The library\n\n"
        f"Measured on {dt.datetime.now(tz=dt.UTC).date()} with `make bench-library` on a machine with "
        f"{os.cpu_count()} cores, {platform.machine()},\nagainst the stub driver; on average {load:.1f} other programs "
        "wanted a core meanwhile or were the benchmark's own.\nCalls: median of "
        f"{calls.RUNS} pairs of runs without the library and with it. GPU time: the worst window of one second.\n\n"
    )
    write("library", text + table(rows))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "words", nargs="*", metavar="WORD", help="only figures with one of these words in their name; writes nothing"
    )
    main(arguments.parse_args().words)
