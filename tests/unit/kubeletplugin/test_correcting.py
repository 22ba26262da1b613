"""The ratio of real to predicted GPU time."""

import pytest

from kubeletplugin.monitoring.correcting import LEAST, MOST, Correction, Measured

ALONE, BOTH = frozenset({"a"}), frozenset({"a", "b"})


def add(correction: Correction, passed_s: float, real_s: dict[str, float], predicted_s: dict[str, float]) -> None:
    correction.add({name: Measured(passed_s, real_s[name], predicted_s[name]) for name in real_s})


def test_nothing_is_corrected_before_something_was_measured() -> None:
    correction = Correction()
    correction.meet(ALONE)
    assert correction.ratio("a") == 1.0
    assert correction.ratio("nobody") == 1.0


def test_predictions_that_contain_the_neighbours_slices_are_corrected_within_a_second() -> None:
    correction = Correction()
    correction.meet(BOTH)
    for _ in range(4):
        add(correction, 0.25, {"a": 0.175, "b": 0.075}, {"a": 0.25, "b": 0.075})
    assert correction.ratio("a") == pytest.approx(0.7, abs=0.02)
    assert correction.ratio("b") == pytest.approx(1.0, abs=0.05)


def test_work_that_is_predicted_low_is_corrected_upwards() -> None:
    correction = Correction()
    correction.meet(ALONE)
    add(correction, 0.25, {"a": 0.2}, {"a": 0.1})
    assert correction.ratio("a") == pytest.approx(2.0, abs=0.01)


def test_a_correction_does_not_feed_itself() -> None:
    correction = Correction()
    correction.meet(ALONE)
    found = set()
    for _ in range(40):
        add(correction, 0.25, {"a": 0.05}, {"a": 0.1})  # whatever was charged for it meanwhile
        found.add(round(correction.ratio("a"), 2))
    assert found == {0.5}


def test_a_new_set_of_neighbours_starts_over_and_a_former_one_is_remembered() -> None:
    correction = Correction()
    correction.meet(BOTH)
    for _ in range(8):
        add(correction, 0.25, {"a": 0.1, "b": 0.1}, {"a": 0.2, "b": 0.2})
    correction.meet(ALONE)
    assert correction.ratio("a") == 1.0
    add(correction, 0.25, {"a": 0.2}, {"a": 0.2})
    assert correction.ratio("a") == pytest.approx(1.0, abs=0.01)
    correction.meet(BOTH)
    assert correction.ratio("a") == pytest.approx(0.5, abs=0.01)


def test_a_share_that_is_hardly_seen_is_corrected_like_its_device() -> None:
    correction = Correction()
    correction.meet(BOTH)
    add(correction, 0.25, {"a": 0.2, "b": 0.0}, {"a": 0.4, "b": 0.02})  # less than half a percent counts as none
    assert correction.ratio("b") == pytest.approx(0.5, abs=0.02)


def test_a_neighbour_that_lies_about_its_predictions_makes_nobodys_work_dearer() -> None:
    """A share of 2 % and one of 10 % beside a tenant who writes a thousandth of what it used into its books."""
    correction = Correction()
    correction.meet(frozenset({"liar", "small", "larger"}))
    for _ in range(80):
        real_s = {"liar": 0.22, "small": 0.005, "larger": 0.025}
        add(correction, 0.25, real_s, real_s | {"liar": 0.00022})
    assert correction.ratio("liar") == MOST
    assert correction.ratio("small") == pytest.approx(1.0, abs=0.01)
    assert correction.ratio("larger") == pytest.approx(1.0, abs=0.01)


def test_a_neighbour_that_lies_the_other_way_gives_little_of_the_device_away() -> None:
    correction = Correction()
    correction.meet(BOTH)
    for _ in range(80):
        add(correction, 0.25, {"a": 0.2, "b": 0.0}, {"a": 20.0, "b": 0.02})
    assert correction.ratio("b") >= 0.5


def test_shares_that_are_all_hardly_seen_are_left_as_they_are() -> None:
    """A driver counts in whole percent: what has half a percent may be shown as one, or as none."""
    correction = Correction()
    names = frozenset(map(str, range(64)))
    correction.meet(names)
    for _ in range(20):
        add(correction, 0.25, dict.fromkeys(names, 0.0025), dict.fromkeys(names, 0.00125))
    assert correction.ratio("7") == pytest.approx(1.0, abs=0.25)


def test_a_share_that_takes_back_what_it_predicted_is_measured_anew() -> None:
    correction = Correction()
    correction.meet(ALONE)
    add(correction, 0.25, {"a": 0.1}, {"a": 2.0})
    add(correction, 0.25, {"a": 0.1}, {"a": -1.8})
    for _ in range(4):
        add(correction, 0.25, {"a": 0.1}, {"a": 0.1})
    assert correction.ratio("a") == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("real_s", "predicted_s", "expected"), [(0.0001, 0.25, LEAST), (0.25, 0.0001, MOST)])
def test_a_correction_stays_within_bounds(real_s: float, predicted_s: float, expected: float) -> None:
    correction = Correction()
    correction.meet(ALONE)
    for _ in range(20):
        add(correction, 0.25, {"a": real_s}, {"a": predicted_s})
    assert LEAST <= correction.ratio("a") <= MOST
    if expected == MOST:
        assert correction.ratio("a") == MOST


def test_a_share_that_is_gone_is_forgotten() -> None:
    correction = Correction()
    correction.meet(ALONE)
    add(correction, 0.25, {"a": 0.1}, {"a": 0.2})
    correction.forget(ALONE)
    correction.meet(ALONE)
    assert correction.ratio("a") == 1.0
