"""What claims cost the controller: a few words of memory each, and work for their own GPU alone."""

import json
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

from controller.cluster.indexing import Indexes, Listeners
from controller.cluster.records import ClaimRecord, claim_trimmer, trim_pod
from controller.offers.composing import Composer
from controller.offers.consumable import ConsumableMode
from controller.offers.counting import Ledger
from controller.offers.forms import GPU, Amount, Division, Holding
from controller.offers.policies import NodeDevices, Policy
from tests.unit.controller.builders import DRIVER, GI, claim, facts, pod, result, status


def test_an_allocated_claim_is_kept_in_less_than_2_kilobytes() -> None:
    trim, ledger = claim_trimmer(DRIVER), Ledger(DRIVER)
    kept: list[ClaimRecord] = []
    texts = [json.dumps(_allocated(number)) for number in range(500)]
    tracemalloc.start()
    try:
        for text in texts:
            record = trim(json.loads(text))
            assert record is not None
            assert record.view is not None
            ledger.note(record.view.uid, record.view.allocation)
            kept.append(record)
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes / len(kept) < 2000


def _allocated(number: int) -> object:
    held = result(facts(number % 8).name, node=f"node-{number % 20}", memory="8Gi", cores="10", shares="1")
    found = claim(f"train-{number}", uid=f"{number:08d}-aaaa-bbbb-cccc-000000000000", memory="8Gi", results=[held])
    found["metadata"]["managedFields"] = [{"manager": "kube-scheduler", "fieldsV1": {"f:status": {}}}]
    found["status"]["reservedFor"] = [{"resource": "pods", "name": f"train-{number}", "uid": f"uid-{number}"}]
    return found


@dataclass(frozen=True)
class Watched(ConsumableMode):
    """Remembers for which GPUs it was asked."""

    asked: list[str] = field(default_factory=list, compare=False)

    def divide(self, gpu: GPU) -> Division:
        """Note the GPU."""
        self.asked.append(gpu.name)
        return super().divide(gpu)


def test_a_claim_that_comes_is_work_for_its_own_gpu_and_none_for_the_seven_others() -> None:
    mode, composer = Watched(), Composer()
    stated, policy = status(*(facts(number) for number in range(8))), Policy()
    first = composer.compose("n1", NodeDevices(stated), mode, policy, [])
    assert len(mode.asked) == 8
    mode.asked.clear()
    name = facts(3).name
    held = NodeDevices(stated, holdings={name: [Holding(name, Amount(GI, 10), shares=1)]})
    second = composer.compose("n1", held, mode, policy, [])
    assert mode.asked == [name]
    # That this GPU is the fullest now is no reason to write yet.
    assert second == first


def test_a_claim_is_looked_at_once_a_pod_waits_for_it_or_something_is_wrong_and_not_before() -> None:
    looked_at: list[str] = []
    listeners = Listeners(
        pool=lambda _: None,
        claim=lambda key: looked_at.append(key[1]),
        pod=lambda _: None,
        template=lambda _: None,
        inventory=lambda _: None,
        device_class=lambda _: None,
        outage_end=lambda: None,
    )
    indexes = Indexes(DRIVER, listeners)
    trim = claim_trimmer(DRIVER)

    def see(name: str, **fields: Any) -> None:
        indexes.on_claim(("demo", name), None, trim(claim(name, **fields)))

    see("fine", memory="1Gi")
    indexes.on_pod(("demo", "p"), None, trim_pod(pod("p", "fine", unschedulable=False)))
    see("fine", memory="1Gi", results=[result(facts().name, memory="1Gi")])
    assert looked_at == []
    indexes.on_pod(("demo", "q"), None, trim_pod(pod("q", "late")))
    see("late", memory="1Gi")
    see("wrong", config={"cores": -1})
    assert looked_at == ["late", "late", "wrong"]
