"""What all tests have in common: modes and environment of what they make, and how `make test` spreads them."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

_WITH_NODES = ("tests/integration/local/", "tests/e2e/")
_WITH_API_SERVER = "tests/integration/"
_OF_OTHERS = ("CUDA_", "NVIDIA_", "DRA_DRIVER_", "VGPU_STUB_", "VGPU_SHARES_DIR")
"""Variables, or their beginnings, by which whoever runs the tests would choose cards, shares and settings for them."""


class _Scheduling(LoadScopeScheduling):
    """One worker for all tests with nodes, one for those with an API server alone, the unit tests file by file.

    Tests with nodes look at mounts, processes and addresses of the whole machine, and all of them share one cluster
    where they can: they run one after the other. Most of their time they wait, which is the unit tests' time.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_WITH_NODES):
            return "nodes"
        return "API server" if nodeid.startswith(_WITH_API_SERVER) else nodeid.partition("::")[0]


def pytest_configure() -> None:
    """Called by pytest: what tests see does not depend on who runs them.

    Other users read what tests make for them, whatever the umask; and no proxy is asked for what runs on this machine.
    """
    os.umask(0o022)
    for name in [name for name in os.environ if name.startswith(_OF_OTHERS)]:
        del os.environ[name]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost,::1"]))


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Take back what a test, or what it calls, has set in the environment: it would be that of the tests behind it."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> LoadScopeScheduling:
    """Called by pytest-xdist."""
    return _Scheduling(config, log)
