"""What a process has cost so far, from /proc. Called by the measurements of agent and controller."""

import os
from pathlib import Path


def cpu_s(process: Path) -> float:
    """Return the CPU seconds of a process, by its folder in /proc; unlike the clock, they mind no busy machine."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: Path) -> float:
    """Return the resident memory of a process in megabytes, by its folder in /proc."""
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
