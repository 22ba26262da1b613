"""Claims that wait by the thousand: explanations take a part of a core, and each claim gets one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from api.claims import ClaimView
from controller.explanationbudgets import ExplanationBudget
from controller.reasons.reasoning import RequestExplanation, explain
from tests.unit.controller.builders import claim


@dataclass
class Cluster:
    """Explanations that cost what they cost on a cluster of some size, on one thread."""

    cost_s: float
    now_s: float = 100.0
    cpu_s: float = 0.0
    explained: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start looking."""
        self.budget = ExplanationBudget(self._explain, clock=lambda: self.now_s, cpu_clock=lambda: self.cpu_s)

    def _explain(self, claims: Sequence[ClaimView]) -> list[RequestExplanation]:
        self.cpu_s += self.cost_s
        self.now_s += self.cost_s
        return explain(claims, [], {})


def waiting(name: str, memory: str) -> ClaimView:
    return ClaimView.from_object(claim(name, memory=memory))


def ask(cluster: Cluster, claims: list[ClaimView]) -> dict[str, float]:
    """Let all claims ask until each has its explanation; return when they got it."""
    due = {one.name: cluster.now_s for one in claims}
    told: dict[str, float] = {}
    while due:
        name = min(due, key=lambda name: due[name])
        cluster.now_s = max(cluster.now_s, due.pop(name))
        (one,) = (each for each in claims if each.name == name)
        found = cluster.budget.explain(name, [one])
        if isinstance(found, float):
            due[name] = cluster.now_s + found
            continue
        assert [each.claim for each in found] == [f"{one.namespace}/{name}"]
        told[name] = cluster.now_s
    return told


def test_each_claim_of_a_small_cluster_is_explained_at_once_and_for_itself() -> None:
    cluster = Cluster(cost_s=0.0001)
    told = ask(cluster, [waiting(f"claim-{number}", "1Gi") for number in range(500)])
    assert max(told.values()) == pytest.approx(100.05)
    assert cluster.cpu_s == pytest.approx(0.05)


def test_a_thousand_claims_alike_share_explanations_of_a_large_cluster() -> None:
    cluster = Cluster(cost_s=0.02)
    told = ask(cluster, [waiting(f"claim-{number}", "1Gi") for number in range(1000)])
    assert len(told) == 1000
    assert max(told.values()) < 101
    assert cluster.cpu_s <= 0.1


def test_a_thousand_claims_of_their_own_take_a_tenth_of_a_core_and_all_get_their_turn() -> None:
    cluster = Cluster(cost_s=0.02)
    told = ask(cluster, [waiting(f"claim-{number}", f"{number + 1}Mi") for number in range(1000)])
    assert len(told) == 1000
    assert cluster.cpu_s == pytest.approx(20.0)
    assert (cluster.cpu_s - 1.0) / (max(told.values()) - 100.0) <= 0.11


def test_what_was_explained_for_others_is_explained_anew_after_a_moment() -> None:
    cluster = Cluster(cost_s=0.02)
    ask(cluster, [waiting("first", "1Gi")])
    cluster.now_s += 0.5
    ask(cluster, [waiting("second", "1Gi")])
    assert cluster.cpu_s == pytest.approx(0.04)
