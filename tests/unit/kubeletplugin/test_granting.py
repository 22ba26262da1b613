"""What a Burst share may use, by what its neighbours do."""

from kubeletplugin.monitoring.granting import Activity, grants
from libvgpu.shares import Limits, Policy


def share(
    name: str,
    cores: int,
    *,
    active: bool = True,
    policy: Policy = Policy.BURST,
    ceiling: int = 100,
    device: str = "GPU-1",
    priority: int = 0,
) -> Activity:
    ceiling = cores if policy is Policy.FIXED else ceiling
    return Activity(Limits(name, device, 1 << 30, cores, ceiling, policy, priority), active)


def test_alone_on_its_device_a_share_may_use_its_ceiling() -> None:
    assert grants([share("a", 30)]) == {"a": 100}
    assert grants([share("a", 0, ceiling=40)]) == {"a": 40}


def test_an_idle_neighbour_and_one_on_another_device_do_not_count() -> None:
    shares = [share("a", 30), share("idle", 50, active=False, policy=Policy.FIXED), share("far", 50, device="GPU-2")]

    assert grants(shares)["a"] == 100


def test_next_to_an_active_neighbour_the_neighbours_guarantee_is_left_alone() -> None:
    assert grants([share("a", 30), share("b", 60, policy=Policy.FIXED)]) == {"a": 40}


def test_active_bursting_shares_divide_what_the_guarantees_leave() -> None:
    assert grants([share("a", 30), share("b", 10)]) == {"a": 60, "b": 40}
    assert grants([share("a", 0), share("b", 0)]) == {"a": 50, "b": 50}


def test_a_share_without_guarantee_still_moves_where_all_is_promised() -> None:
    assert grants([share("a", 0), share("b", 100, policy=Policy.FIXED)]) == {"a": 1}


def test_no_grant_exceeds_the_ceiling() -> None:
    assert grants([share("a", 0, ceiling=20), share("b", 10, policy=Policy.FIXED)]) == {"a": 20}


def test_a_fixed_share_is_granted_nothing() -> None:
    assert grants([share("a", 30, policy=Policy.FIXED)]) == {}


def test_idle_time_goes_to_the_highest_priority_at_work() -> None:
    low, high = share("low", 10), share("high", 20, priority=1)
    assert grants([low, high, share("fixed", 30, policy=Policy.FIXED)]) == {"low": 10, "high": 60}
    assert grants([low, share("high", 20, priority=1, active=False)])["low"] == 100
    assert grants([low, share("fixed", 30, policy=Policy.FIXED, priority=1)]) == {"low": 10}
