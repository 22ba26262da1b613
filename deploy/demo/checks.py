"""What the demo and the end-to-end tests look at: what was expected, what was found, and whether that is so."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    what: str
    expected: str
    found: str
    ok: bool


def equal(what: str, expected: object, found: object) -> Check:
    """Check that both are the same."""
    return Check(what, str(expected), str(found), expected == found)


def capped(what: str, expected: float, found: float, tolerance: float, unit: str) -> Check:
    """Check that a figure is the expected one; less, but not half of it, where a busy machine lets nobody have more."""
    expectation = f"{expected:g} {unit}, at most {tolerance:g} more; less on a busy machine"
    return Check(what, expectation, f"{found:.1f} {unit}", expected / 2 < found <= expected + tolerance)


def at_most(what: str, limit: int, found: int, unit: str) -> Check:
    """Check that a figure does not pass a limit."""
    return Check(what, f"at most {limit} {unit}", f"{found} {unit}", found <= limit)


def contains(what: str, expected: str, found: str) -> Check:
    """Check that a text has a part; shows the line that has it, else the first line."""
    lines = found.strip().splitlines() or [""]
    line = next((line for line in lines if expected in line), lines[0])
    return Check(what, expected, line.strip(), expected in found)


def format_report(checks: list[Check]) -> str:
    """Return the checks for a person: one line each, and the expectation where it was not met."""
    width = max(len(check.what) for check in checks)
    lines: list[str] = []
    for check in checks:
        mark = "ok  " if check.ok else "FAIL"
        lines.append(f"  {mark} {check.what:<{width}}  {check.found}")
        if not check.ok or check.expected not in check.found:
            lines.append(f"       {'':<{width}}  ({'expected ' if not check.ok else ''}{check.expected})")
    return "\n".join(lines)
