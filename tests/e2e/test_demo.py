"""What `make demo` shows, checked by the card's own count."""

from collections.abc import Callable

import pytest

from deploy.demo import looking
from deploy.demo.checks import Check, format_report
from deploy.demo.scenario import Scenario

pytestmark = pytest.mark.cluster


def _assert_all(found: list[Check]) -> None:
    assert found
    assert all(check.ok for check in found), f"\n{format_report(found)}"


@pytest.mark.parametrize(
    "look",
    [
        looking.both_run_on_one_gpu,
        looking.each_sees_its_share,
        looking.greed_is_refused,
        looking.time_is_divided,
        looking.the_card_agrees,
        looking.the_third_waits,
    ],
    ids=lambda look: look.__name__,
)
def test_two_tenants_share_one_gpu(tenants: Scenario, look: Callable[[Scenario], list[Check]]) -> None:
    _assert_all(look(tenants))
