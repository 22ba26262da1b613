"""Events by the thousand: together they take so many requests a second, and what was never said goes first."""

from dataclasses import dataclass, field

from controller.eventbudgets import BURST, REQUESTS_PER_S, EventBudget


@dataclass
class World:
    """Who wants to write, on a clock of its own."""

    now_s: float = 100.0
    spent: int = 0
    told_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with a full budget."""
        self.budget = EventBudget(lambda: self.now_s)

    def write(self, *names: str, first: bool) -> None:
        """Let all of them write two requests, each when it may."""
        due = dict.fromkeys(names, self.now_s)
        while due:
            name = min(due, key=lambda name: due[name])
            self.now_s = max(self.now_s, due.pop(name))
            wait_s = self.budget.ask(name, 2, first=first)
            if wait_s > 0:
                due[name] = self.now_s + wait_s
                continue
            self.budget.spend(2)
            self.spent += 2
            self.told_s[name] = self.now_s


def names(count: int) -> list[str]:
    return [f"claim-{number}" for number in range(count)]


def test_hundreds_are_told_at_once() -> None:
    world = World()
    world.write(*names(500), first=True)
    assert world.now_s == 100.0


def test_thousands_are_told_one_after_the_other_at_the_rate_that_is_allowed() -> None:
    world = World()
    world.write(*names(5000), first=True)
    assert len(world.told_s) == 5000
    rate = (world.spent - BURST) / (world.now_s - 100.0)
    assert 0.95 * REQUESTS_PER_S <= rate <= 1.05 * REQUESTS_PER_S


def test_what_is_said_for_the_first_time_need_not_wait_for_repetitions() -> None:
    world = World()
    world.write(*names(400), first=False)
    assert world.now_s > 100.0
    began_s = world.now_s
    world.write("new", first=True)
    assert world.now_s == began_s
    assert world.budget.ask("again", 2, first=False) > 0


def test_who_has_nothing_to_say_any_more_keeps_nobody_waiting() -> None:
    world = World()
    world.write(*names(400), first=False)
    waits_s = [world.budget.ask(name, 2, first=False) for name in names(50)]
    assert waits_s == sorted(waits_s)
    for name in names(50):
        world.budget.forget(name)
    assert world.budget.ask("last", 2, first=False) <= waits_s[0]
