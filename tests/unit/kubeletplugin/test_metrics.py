"""What Prometheus gets of a node, and that its documentation says the same."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from api.kubefake import FakeKube
from api.names import ClaimUID, DeviceName
from controller.metrics import Metrics as ControllerMetrics
from kubeletplugin.hardware.devices import DeviceFigures, MemoryRepairs
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.comparing import Attribution, DriverCount
from kubeletplugin.monitoring.metrics import CallDurations, NodeCollector, NodeFigures
from kubeletplugin.monitoring.strays import StrayFigures
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice
from libvgpu.shares import Books, Limits, Policy, ProcessUsage
from tests.unit.kubeletplugin.builders import gpu
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, PrepareError, Ref

PAGE = Path(__file__).parents[3] / "docs/metrics.md"
_ROW = re.compile(r"\| `(vgpu_\w+)`(?: by ([\w, `]+?))? \| (\w+) \| (.+) \|")
UUID = gpu(0).uuid


def node() -> NodeFigures:
    """A node of which everything is known."""
    limits = Limits("train-0", UUID, 1 << 30, 25, 100, Policy.BURST, priority=3, granted_percent=50)
    device = PreparedDevice(0, "gpu", "node-1", DeviceName(UUID.lower()), limits=limits)
    claim = PreparedClaim(ClaimUID("train"), "team-a", "train", (device,))
    process = ProcessUsage(7, 1, 1, 600 << 20, 2_000_000_000, 0, 5, 0, "python")
    books = Books(600 << 20, 700 << 20, (process,), 3_000_000_000, 1_000_000_000, 9, 2)
    return NodeFigures(
        readings=[ShareReading(claim, limits, books, utilization=0.4)],
        devices=[gpu(0)],
        measured=[DeviceFigures(UUID, 10 << 30, 5 << 30, 70, 55, 300.5, 12.5, 1, REPAIRS)],
        attribution=Attribution({"train-0": DriverCount(2 << 30, (4711,))}, {UUID: 3 << 20}),
        overuse_counts={"train-0": 1},
        faults={(UUID, "xid-79"): 2},
        strays=StrayFigures({(UUID, "pod-9"): 5 << 30}, 3),
    )


REPAIRS = MemoryRepairs(3, 2, remap_pending=True, remap_failed=False, retirement_pending=True)


def families() -> dict[str, Metric]:
    registry = CollectorRegistry()
    durations = CallDurations()
    for collector in (NodeCollector(node), durations.prepare, durations.unprepare):
        registry.register(collector)
    ControllerMetrics(registry)
    for histogram in (durations.prepare, durations.unprepare):
        histogram.labels("ok").observe(1)
    return {family.name: family for family in registry.collect()}


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("vgpu_share_memory_driver_bytes", 2 << 30),
        ("vgpu_share_memory_difference_bytes", (2 << 30) - (600 << 20)),
        ("vgpu_share_overuse_bytes", 1 << 30),
        ("vgpu_share_overuse_total", 1),
        ("vgpu_share_compute_granted_ratio", 0.5),
        ("vgpu_share_compute_utilization_ratio", 0.4),
        ("vgpu_share_throttled_seconds_total", 1.0),
        ("vgpu_process_gpu_seconds_total", 2.0),
        ("vgpu_device_utilization_ratio", 0.7),
        ("vgpu_device_energy_joules_total", 12.5),
        ("vgpu_device_memory_unattributed_bytes", 3 << 20),
        ("vgpu_device_allocated_compute_ratio", 0.25),
        ("vgpu_device_faults_total", 2),
        ("vgpu_pod_overuse_bytes", 5 << 30),
        ("vgpu_pod_overuse_total", 3),
    ],
)
def test_figures_are_in_base_units(metric: str, value: float) -> None:
    samples = [sample for family in families().values() for sample in family.samples if sample.name == metric]
    assert [sample.value for sample in samples] == [pytest.approx(value)]


def test_a_device_that_is_held_back_is_well_and_not_offered_and_a_part_that_a_claim_holds_is_all_taken() -> None:
    held_back = gpu(1, offered=False, reason="held back by the setting hold_back: 1")
    part = gpu(2, type="mig", memory_bytes=5 << 30)
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: NodeFigures(devices=[held_back, part], parts=[part.name])))

    def found(metric: str) -> list[float | None]:
        return [registry.get_sample_value(f"vgpu_device_{metric}", {"device": one.uuid}) for one in (held_back, part)]

    assert (found("healthy"), found("offered")) == ([1, 1], [0, 1])
    assert (found("shares"), found("allocated_compute_ratio")) == ([0, 1], [0, 1])
    assert found("allocated_memory_bytes") == [0, 5 << 30]


def test_what_the_driver_does_not_say_is_left_out_and_not_zero() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: NodeFigures(measured=[DeviceFigures(UUID)])))
    samples = [sample.name for family in registry.collect() for sample in family.samples]
    assert not [
        name for name in samples if name.startswith(("vgpu_device_temp", "vgpu_device_memory", "vgpu_device_p"))
    ]


def test_calls_of_the_kubelet_are_timed_by_outcome(
    start_agent: Callable[..., object], kubelet: FakeKubelet, client: FakeKube
) -> None:
    from tests.unit.kubeletplugin.builders import add_claim, result

    registry = CollectorRegistry()
    start_agent(registry=registry)
    kubelet.register()
    claim = add_claim(client, "train", result(gpu(0)))

    kubelet.prepare(claim)
    kubelet.unprepare(claim)
    with pytest.raises(PrepareError):
        kubelet.prepare(Ref("11111111-2222-3333-4444-555555555555", "default", "gone"))

    def count(name: str, outcome: str) -> float | None:
        return registry.get_sample_value(f"vgpu_{name}_seconds_count", {"outcome": outcome})

    assert (count("prepare", "ok"), count("prepare", "error"), count("unprepare", "ok")) == (1, 1, 1)


def test_the_page_on_metrics_lists_each_of_them_with_its_labels_and_kind() -> None:
    listed = {
        match.group(1): (tuple(re.findall(r"\w+", match.group(2) or "")), match.group(3))
        for match in map(_ROW.fullmatch, PAGE.read_text().splitlines())
        if match
    }
    assert listed == {
        name + ("_total" if family.type == "counter" else ""): (_labels(family), family.type)
        for name, family in families().items()
    }


def test_the_page_on_metrics_explains_each_as_the_program_does() -> None:
    explained = {
        match.group(1): match.group(4) for match in map(_ROW.fullmatch, PAGE.read_text().splitlines()) if match
    }
    for name, family in families().items():
        assert explained[name + ("_total" if family.type == "counter" else "")] == family.documentation


def _labels(family: Metric) -> tuple[str, ...]:
    for metric in vars(ControllerMetrics(CollectorRegistry())).values():
        if metric._name == family.name:
            return tuple(metric._labelnames)
    return tuple(label for label in family.samples[0].labels if label != "le") if family.samples else ()
