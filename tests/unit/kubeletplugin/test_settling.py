"""What a share was charged wrongly is given back, or taken."""

import pytest

from kubeletplugin.monitoring.settling import Settlement, Span


def _span(real_s: float, charged_s: float, part: float = 0.3, weight: float = 1.0) -> Span:
    return Span(0.25, real_s, charged_s, part, weight)


def test_what_was_charged_too_much_comes_back_and_what_was_charged_too_little_is_taken() -> None:
    settlement = Settlement()
    settlement.add(_span(real_s=0.05, charged_s=0.10))
    assert settlement.take() == pytest.approx(0.05)
    assert settlement.take() == 0
    settlement.add(_span(real_s=0.10, charged_s=0.04))
    assert settlement.take() == pytest.approx(-0.06)


def test_small_differences_wait_until_they_add_up() -> None:
    settlement = Settlement()
    taken = []
    for _ in range(8):
        settlement.add(_span(real_s=0.075, charged_s=0.077))
        taken.append(settlement.take())
    assert sum(one != 0 for one in taken) == 2
    assert sum(taken) == pytest.approx(0.012)


def test_a_share_that_has_more_than_its_part_gets_nothing_back_whatever_its_books_say() -> None:
    settlement = Settlement()
    given_s = 0.0
    for _ in range(40):
        settlement.add(_span(real_s=0.25, charged_s=5.0))
        given_s += max(settlement.take(), 0.0)
    assert given_s < 0.3 * 0.25


def test_what_a_driver_hardly_sees_is_not_settled() -> None:
    settlement = Settlement()
    settlement.add(_span(real_s=0.0, charged_s=0.1, weight=0.0))
    assert settlement.take() == 0
