"""Which GPUs are joined by links."""

from kubeletplugin.hardware.devices import Device
from kubeletplugin.hardware.linkislands import islands
from tests.unit.kubeletplugin.builders import gpu


def linked(number: int, *links: str) -> Device:
    return gpu(number, pci_bus_id=f"0000:0{number}:00.0", links=frozenset(links))


def test_pairs_that_are_linked_to_each_other_are_islands_of_their_own() -> None:
    gpus = [
        linked(0, "0000:01:00.0"),
        linked(2, "0000:03:00.0"),
        linked(1, "0000:00:00.0"),
        linked(3, "0000:02:00.0"),
        gpu(4),
    ]
    assert islands(gpus) == {
        gpus[0].name: gpus[0].uuid,
        gpus[2].name: gpus[0].uuid,
        gpus[1].name: gpus[1].uuid,
        gpus[3].name: gpus[1].uuid,
    }


def test_all_gpus_behind_switches_are_one_island() -> None:
    gpus = [linked(number, "0000:a0:00.0", "0000:a1:00.0") for number in range(4)]
    assert set(islands(gpus).values()) == {gpus[0].uuid}
    assert len(islands(gpus)) == 4


def test_a_chain_is_one_island_in_whichever_order_it_is_found() -> None:
    chain = [linked(0, "0000:01:00.0"), linked(3, "0000:02:00.0"), linked(2, "0000:01:00.0"), linked(1)]
    assert len(set(islands(chain).values())) == 1
    assert set(islands(reversed(chain)).values()) == {chain[0].uuid}


def test_a_gpu_whose_links_lead_to_nobody_here_is_on_no_island() -> None:
    assert islands([linked(0, "0000:b0:00.0"), linked(1)]) == {}
