"""Processes as metrics show them, whatever their tenant writes into its books."""

from prometheus_client import CollectorRegistry

from api.names import ClaimUID
from kubeletplugin.monitoring.bookreading import ShareReading
from kubeletplugin.monitoring.metrics import NodeCollector, NodeFigures
from kubeletplugin.monitoring.processfigures import OTHERS, Name, ProcessNames
from kubeletplugin.state.preparedclaims import PreparedClaim
from libvgpu.shares import Books, Limits, Policy, ProcessUsage


def process(pid: int, memory_bytes: int = 1, namespace: int = 1, command: str = "python") -> ProcessUsage:
    return ProcessUsage(pid, namespace, 1, memory_bytes, 10, 0, 0, 0, command, host_bytes=2)


def test_processes_of_two_containers_are_told_apart_and_those_that_are_not_are_added_up() -> None:
    found = ProcessNames().of_share("a", [process(1, 5), process(1, 7, namespace=2), process(1, 100)])

    assert {name: (one.memory_bytes, one.gpu_time_ns, one.host_bytes) for name, one in found.items()} == {
        ("1", "1", "python"): (105, 20, 4),
        ("1", "2", "python"): (7, 10, 2),
    }


def test_the_largest_processes_are_named_and_the_others_are_one() -> None:
    found = ProcessNames().of_share("a", [process(pid, pid) for pid in range(1, 101)])

    assert sorted(int(pid) for pid, _, command in found if command != "others") == list(range(85, 101))
    assert found[OTHERS].memory_bytes == sum(range(1, 85))


def test_a_tenant_that_names_its_processes_anew_at_each_scrape_makes_few_time_series() -> None:
    now_s = [0.0]
    names = ProcessNames(lambda: now_s[0])
    seen: set[Name] = set()
    for scrape in range(240):  # an hour
        processes = [process(pid, command=f"x{scrape}") for pid in range(1000)]
        found = names.of_share("a", processes)
        seen |= found.keys()
        assert sum(one.memory_bytes for one in found.values()) == 1000
        now_s[0] += 15.0

    assert len(seen) <= 64 + 60 + 1
    assert len(names.of_share("b", [process(1)])) == 1  # a neighbour's are named as ever


def test_no_time_series_is_there_twice() -> None:
    limits = Limits("train-0", "GPU-1", 1 << 30, 25, 100, Policy.BURST)
    claim = PreparedClaim(ClaimUID("train"), "team-a", "train", ())
    processes = (process(1), process(1), process(1, command="others"), *(process(pid) for pid in range(40)))
    readings = [ShareReading(claim, limits, Books(0, 0, processes, 0, 0, 0, 0))]
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: NodeFigures(readings=readings)))

    series = [(sample.name, *sorted(sample.labels.items())) for one in registry.collect() for sample in one.samples]

    assert len(series) == len(set(series))
