"""How the tests are spread over workers (`pytest --numprocesses 2`, as `make test` does)."""

from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

_WITH_CLUSTERS = ("tests/integration/", "tests/e2e/")


class _Scheduling(LoadScopeScheduling):
    """All tests with clusters on one worker, the unit tests file by file on the others, which mostly wait otherwise.

    Tests with clusters look at mounts, processes and addresses of the whole machine, and share one cluster where they
    can: they run one after the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(_WITH_CLUSTERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> LoadScopeScheduling:
    """Called by pytest-xdist."""
    return _Scheduling(config, log)
