"""Calls that come at the same time: worked on together, without one holding up or failing another."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from api.deadlines import left_s, within
from api.errors import TransientError
from kubeletplugin.claims import rounds
from kubeletplugin.claims.rounds import Rounds

Wanted = Mapping[str, int]


class Work:
    """Doubles numbers; a round that has a 0 in it waits until it is told to go on."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, int]] = []
        self.times_s: list[float] = []
        self.began, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, wanted: Wanted) -> Wanted:
        self.rounds.append(dict(wanted))
        self.times_s.append(left_s(1000))
        if 0 in wanted.values():
            self.began.set()
            assert self.goes_on.wait(60)
        if -1 in wanted.values():
            raise ValueError("found -1")
        return {name: 2 * number for name, number in wanted.items()}


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def wait_for(shared: Rounds[str, int, int], calls: int) -> None:
    end_s = time.monotonic() + 60
    while len(shared._waiting) < calls:
        assert time.monotonic() < end_s
        time.sleep(0.001)


def behind_a_round(
    shared: Rounds[str, int, int], work: Work, pool: ThreadPoolExecutor, *wanted: Wanted
) -> list[Future[dict[str, int]]]:
    """Ask for things while a round is at work; let it go on once all of them wait."""
    first = pool.submit(shared.do, {"first": 0})
    assert work.began.wait(60)
    asked = []
    for number, one in enumerate(wanted, 1):
        asked.append(pool.submit(shared.do, one))
        wait_for(shared, number)
    work.goes_on.set()
    assert first.result(60) == {"first": 0}
    return asked


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_PATIENCE_S", 60)


def test_a_call_that_comes_alone_is_worked_on_at_once_by_its_own_thread(work: Work) -> None:
    shared = Rounds(work)

    assert shared.do({"a": 1, "b": 2}) == {"a": 2, "b": 4}
    assert shared.do({"c": 3}) == {"c": 6}

    assert work.rounds == [{"a": 1, "b": 2}, {"c": 3}]


def test_calls_that_come_while_others_are_worked_on_share_the_next_round(
    work: Work, pool: ThreadPoolExecutor, patient: None
) -> None:
    shared = Rounds(work)

    asked = behind_a_round(shared, work, pool, {"a": 1}, {"b": 2, "c": 3}, {"c": 3, "d": 4})

    assert [one.result(60) for one in asked] == [{"a": 2}, {"b": 4, "c": 6}, {"c": 6, "d": 8}]
    assert work.rounds == [{"first": 0}, {"a": 1, "b": 2, "c": 3, "d": 4}]


def test_a_round_takes_no_more_than_its_share_of_what_waits(
    work: Work, pool: ThreadPoolExecutor, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_MOST_THINGS", 2)
    shared = Rounds(work)

    asked = behind_a_round(shared, work, pool, {"a": 1, "b": 2, "c": 3}, {"d": 4}, {"e": 5}, {"f": 6})

    assert [len(one.result(60)) for one in asked] == [3, 1, 1, 1]
    assert work.rounds[1:] == [{"a": 1, "b": 2, "c": 3}, {"d": 4, "e": 5}, {"f": 6}]


def test_a_round_that_waits_for_somebody_holds_up_no_other_call(work: Work, pool: ThreadPoolExecutor) -> None:
    shared = Rounds(work)
    first = pool.submit(shared.do, {"first": 0})
    assert work.began.wait(60)

    assert shared.do({"a": 1}) == {"a": 2}

    assert not first.done()
    work.goes_on.set()
    assert first.result(60) == {"first": 0}


def test_an_error_is_told_to_all_whose_round_it_was_and_to_nobody_else(
    work: Work, pool: ThreadPoolExecutor, patient: None
) -> None:
    shared = Rounds(work)

    asked = behind_a_round(shared, work, pool, {"a": -1}, {"b": 2})

    for one in asked:
        with pytest.raises(ValueError, match=r"^found -1$"):
            one.result(60)
    assert shared.do({"c": 3}) == {"c": 6}


def test_of_two_calls_that_want_something_else_under_one_name_the_second_is_not_served_with_the_first(
    work: Work, pool: ThreadPoolExecutor, patient: None
) -> None:
    shared = Rounds(work)

    asked = behind_a_round(shared, work, pool, {"a": 1}, {"a": 2, "b": 3})

    assert [one.result(60) for one in asked] == [{"a": 2}, {"b": 6}]


@pytest.mark.parametrize("order", [(20, 500), (500, 20)])
def test_a_call_with_little_time_left_leaves_those_of_its_round_the_time_that_they_have(
    work: Work, pool: ThreadPoolExecutor, patient: None, order: tuple[float, float]
) -> None:
    shared = Rounds(work)

    def do_within(seconds: float) -> dict[str, int]:
        with within(seconds):
            return shared.do({f"{seconds} s": 1})

    first = pool.submit(shared.do, {"first": 0})
    assert work.began.wait(60)
    asked = []
    for number, seconds in enumerate(order, 1):
        asked.append(pool.submit(do_within, seconds))
        wait_for(shared, number)
    work.goes_on.set()

    assert [len(one.result(60)) for one in (first, *asked)] == [1, 1, 1]
    assert len(work.rounds) == 2
    assert 400 < work.times_s[1] <= 500


def test_a_call_whose_time_is_up_before_its_round_comes_is_told_so(
    work: Work, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_MOST_ROUNDS", 1)
    shared = Rounds(work)
    first = pool.submit(shared.do, {"first": 0})
    assert work.began.wait(60)

    message = "^other calls were worked on for all the time that this one had$"
    with pytest.raises(TransientError, match=message), within(0.01):
        shared.do({"a": 1})

    work.goes_on.set()
    assert first.result(60) == {"first": 0}
    assert work.rounds == [{"first": 0}]
