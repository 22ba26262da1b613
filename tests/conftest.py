"""What all tests have in common: the modes of what they make, and how `make test` spreads them over workers."""

import os
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

_WITH_NODES = ("tests/integration/local/", "tests/e2e/")
_WITH_API_SERVER = "tests/integration/"


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
    """Called by pytest: other users read what tests make for them, whatever the umask of who runs the tests."""
    os.umask(0o022)


def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> LoadScopeScheduling:
    """Called by pytest-xdist."""
    return _Scheduling(config, log)
