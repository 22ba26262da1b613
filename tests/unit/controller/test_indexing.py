"""What follows from changes of slices: which pools they are in, and who is to look at them."""

from api.claims import Object
from controller.cluster.indexing import Indexes, Listeners
from controller.offers.consumable import ConsumableMode
from controller.offers.probing import PROBE_NODE
from controller.offers.publishing import Pool, render
from tests.unit.controller.builders import DRIVER, facts, offered

KEY = ("", "a-slice")


class Watched:
    """Indexes, and the pools that they say are worth a look."""

    def __init__(self) -> None:
        self.pools: list[str] = []
        listeners = Listeners(
            pool=self.pools.append,
            claim=lambda _: None,
            pod=lambda _: None,
            template=lambda _: None,
            inventory=lambda _: None,
            device_class=lambda _: None,
            outage_end=lambda: None,
        )
        self.indexes = Indexes(DRIVER, listeners)

    def see(self, old: Object | None, new: Object | None) -> list[str]:
        """Take a change over as a watcher does; return who is to look at it."""
        self.pools.clear()
        self.indexes.index_slice(KEY, old, new)
        self.indexes.on_slice(KEY, old, new)
        return sorted(self.pools)


def slice_of(node: str) -> Object:
    (made,) = render(Pool(DRIVER, node, "uid", offered(ConsumableMode(), facts()).slices, "v1"), 1)
    return made


def test_a_slice_that_was_made_anew_for_another_node_while_nobody_watched_is_in_that_nodes_pool_alone() -> None:
    watched = Watched()
    first, second = slice_of("n1"), slice_of("n2")
    assert watched.see(None, first) == ["n1"]
    assert watched.see(first, second) == ["n1", "n2"]
    assert watched.indexes.pools() == {"n2"}
    assert [device.node for device in watched.indexes.devices()] == ["n2"]
    assert watched.see(second, None) == ["n2"]
    assert (watched.indexes.pools(), watched.indexes.devices()) == (set(), [])


def test_what_stands_for_no_node_is_in_no_pool_and_offers_nothing() -> None:
    watched = Watched()
    assert watched.see(None, slice_of(PROBE_NODE)) == [PROBE_NODE]
    assert (watched.indexes.pools(), watched.indexes.devices()) == (set(), [])
