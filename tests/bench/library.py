"""`make bench-library`: the interception library's figures, as a table in docs/performance.md."""

import datetime as dt
import os
import platform

from tests.bench import calls, compute
from tests.bench.rig import rig
from tests.bench.tables import Row, table, write


def main() -> None:
    """Measure, print and write."""
    rows: list[Row] = []
    with rig() as machine:
        for measure in (calls.measure, compute.measure):
            for row in measure(machine):
                print(f"{row.figure:55} {row.found:24} {row.spread:44} bar: {row.bar}", flush=True)
                rows.append(row)
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
    main()
