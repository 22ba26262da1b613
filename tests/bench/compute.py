"""How exactly shares get their GPU time, by the simulated card's own count. Called by tests.bench.library.

Each figure is the worst deviation of any window of one second, in points (percent of the device), after a start of two
seconds; the steering of the node agent runs as it does on a node.
"""

import statistics
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

from api.vgpuconfig import Policy
from tests.bench.rig import Rig, Run, Tenant
from tests.bench.tables import Case, Found

_MS = 1_000_000
_WARM_S = 2.0
_RUNS = 5
_BAR = "2 points"


def cases(rig: Rig) -> Iterator[Case]:
    """Yield a case for each situation."""
    for name, lengths, processes in (
        ("20 us kernels", (20_000,), 1),
        ("1 ms kernels", (_MS,), 1),
        ("5 ms kernels", (5 * _MS,), 1),
        ("0.2 and 1.8 ms kernels in turn", (200_000, 1_800_000), 1),
        ("1 ms kernels, 3 processes", (_MS,), 3),
    ):
        yield Case(f"10 to 90 % alone, {name}", partial(_alone, rig, lengths, processes))
    for name, first, second in (
        ("30 and 70 %, 1 ms kernels", Tenant("a", 30, (_MS,)), Tenant("b", 70, (_MS,))),
        ("30 % with 1 ms, 70 % with 200 ms", Tenant("a", 30, (_MS,)), Tenant("b", 70, (200 * _MS,))),
        ("25 and 40 %, 5 ms kernels", Tenant("a", 25, (5 * _MS,)), Tenant("b", 40, (5 * _MS,))),
    ):
        yield Case(name, partial(_pair, rig, first, second))
    long = _LongBesideShort(rig)
    yield Case("30 % with 200 ms, 70 % with 1 ms, over any 10 s", long.over_ten_seconds)
    yield Case("the same, over any second", long.over_a_second)
    yield Case("Burst share on an idle GPU", partial(_burst, rig))
    yield Case("Burst share back at its share when a neighbour wakes", partial(_back, rig))
    yield Case("64 shares of 1 %: Jain's index", partial(_fairness, rig))


def _run(rig: Rig, tenants: Sequence[Tenant], seconds: float) -> Run:
    rig.reset()
    for tenant in tenants:
        rig.share(tenant)
    return rig.run(tenants, seconds)


def _worst(run: Run, tenant: Tenant) -> float:
    return max(abs(percent - tenant.cores) for percent in run.windows(tenant.share, 1.0, _WARM_S))


def _alone(rig: Rig, lengths: Sequence[int], processes: int) -> Found:
    worst = {}
    for cores in (10, 30, 50, 70, 90):
        tenant = Tenant("a", cores, lengths, processes)
        worst[cores] = _worst(_run(rig, [tenant], 4.5), tenant)
    spread = ", ".join(f"{cores}: {points:.1f}" for cores, points in worst.items())
    return Found(f"{max(worst.values()):.1f} points", spread, _BAR)


def _pair(rig: Rig, first: Tenant, second: Tenant) -> Found:
    found = []
    means: dict[str, list[float]] = {first.share: [], second.share: []}
    for _ in range(_RUNS):
        run = _run(rig, [first, second], 7)
        found.append(max(_worst(run, first), _worst(run, second)))
        for tenant in (first, second):
            means[tenant.share].append(run.percent(tenant.share, _WARM_S, 7))
    found.sort()
    mean = " and ".join(f"{statistics.mean(one):.1f}" for one in means.values())
    return Found(f"{statistics.median(found):.1f} points", f"{found[0]:.1f} to {found[-1]:.1f}; means {mean} %", _BAR)


class _LongBesideShort:
    """A share whose kernels take so long that a second holds whole ones or none, beside one with short kernels."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._long, self._short = Tenant("a", 30, (200 * _MS,)), Tenant("b", 70, (_MS,))

    @cached_property
    def _runs(self) -> list[Run]:
        return [_run(self._rig, [self._long, self._short], 16) for _ in range(3)]

    def _worst(self, width_s: float) -> list[float]:
        return sorted(
            max(
                abs(percent - tenant.cores)
                for tenant in (self._long, self._short)
                for percent in run.windows(tenant.share, width_s, 4)
            )
            for run in self._runs
        )

    def over_ten_seconds(self) -> Found:
        found = self._worst(10)
        means = [
            statistics.mean(run.percent(one.share, 4, 16) for run in self._runs) for one in (self._long, self._short)
        ]
        spread = f"{found[0]:.1f} to {found[-1]:.1f}; means {means[0]:.1f} and {means[1]:.1f} %"
        return Found(f"{statistics.median(found):.1f} points", spread, _BAR)

    def over_a_second(self) -> Found:
        found, possible = self._worst(1), least_deviation(self._long.cores / 100, 0.2, 1.0) * 100
        spread = f"{found[0]:.1f} to {found[-1]:.1f}"
        return Found(f"{statistics.median(found):.1f} points", spread, f"{possible:.1f} points are in the nature of it")


def least_deviation(part: float, kernel_s: float, window_s: float) -> float:
    """Return how far from its part a share must be in some window although it keeps the best possible time.

    A kernel is not cut short; beside a neighbour that has equal turns it has half of the device for twice its length,
    and the share then pauses until the next one is due.
    """
    period_s, busy_s = kernel_s / part, 2 * kernel_s

    def had_s(moment_s: float) -> float:
        whole, rest_s = divmod(moment_s, period_s)
        return whole * kernel_s + min(rest_s, busy_s) / 2

    starts = [period_s * step / 1000 for step in range(1000)]
    return max(abs((had_s(start + window_s) - had_s(start)) / window_s - part) for start in starts)


def _burst(rig: Rig) -> Found:
    idle = []
    for _ in range(_RUNS):
        run = _run(rig, [Tenant("a", 20, (_MS,), policy=Policy.BURST)], 2.5)
        idle.append(run.percent("a", 1.0, 2.4))
    return Found(f"{statistics.median(idle):.1f} %", f"{min(idle):.1f} to {max(idle):.1f}", "97 %")


def _back(rig: Rig) -> Found:
    late = []
    for _ in range(_RUNS):
        burst, neighbour = Tenant("a", 20, (_MS,), policy=Policy.BURST), Tenant("b", 60, (_MS,), start_s=2.5)
        late.append(_back_ms(_run(rig, [burst, neighbour], 5), 2.5, 40))
    return Found(f"{statistics.median(late):.0f} ms", f"{min(late):.0f} to {max(late):.0f}", "200 ms")


def _back_ms(run: Run, woke_s: float, percent: float) -> float:
    """Return how long after a moment the first tenth of a second begins in which the share has what it may have."""
    used = run.used_s["a"]
    for begin, moment in enumerate(run.moments_s):
        end = begin + 5
        if moment < woke_s or end >= len(used):
            continue
        if (used[end] - used[begin]) / (run.moments_s[end] - moment) * 100 <= percent + 5:
            return (moment - woke_s) * 1e3
    return float("inf")


def _fairness(rig: Rig) -> Found:
    found = []
    for _ in range(_RUNS):
        tenants = [Tenant(f"s{number}", 1, (_MS,)) for number in range(64)]
        run = _run(rig, tenants, 6)
        shares = [run.percent(tenant.share, _WARM_S, 6) for tenant in tenants]
        found.append(sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)))
    spread = f"{min(found):.4f} to {max(found):.4f}"
    return Found(f"{statistics.median(found):.4f}", spread, "0.99")
