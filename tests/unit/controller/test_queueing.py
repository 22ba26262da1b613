"""The work queue: a key once in the queue and once in hand, delays and back-off."""

import threading

from controller.queueing import WorkQueue, backoff_s


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_queued_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [queue.take(), queue.take()] == ["a", "b"]
    queue.done("a")
    queue.done("b")
    assert queue.idle()


def test_a_key_that_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.add("b")
    assert queue.take() == "b"
    queue.done("a")
    assert queue.take() == "a"


def test_a_delayed_key_comes_when_it_is_due_and_the_earliest_delay_counts() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 20)
    assert queue.idle()
    clock.now = 5
    assert queue.take() == "a"
    queue.done("a")
    clock.now = 30
    assert queue.idle()


def test_adding_a_key_now_makes_its_delay_void() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 5)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    clock.now = 6
    assert queue.idle()


def test_back_off_doubles_to_a_minute_and_success_ends_it() -> None:
    assert [round(backoff_s(failures), 1) for failures in (1, 2, 3, 10, 11, 1000)] == [0.1, 0.2, 0.4, 51.2, 60, 60]
    queue: WorkQueue[str] = WorkQueue(Clock())
    assert [queue.retry("a"), queue.retry("a"), queue.retry("b")] == [0.1, 0.2, 0.1]
    queue.succeed("a")
    assert queue.retry("a") == 0.1


def test_a_closed_queue_wakes_up_who_waits() -> None:
    queue: WorkQueue[str] = WorkQueue()
    taken: list[str | None] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(60)
    assert taken == [None]
