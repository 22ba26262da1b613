"""A real API server, scheduler and controller manager without nodes, once for all integration tests."""

import os
from collections.abc import Iterator

import pytest

from deploy.local.cluster import Cluster


@pytest.fixture(scope="session")
def api_server() -> Iterator[Cluster]:
    """A started control plane on free ports, removed at the end of the session, also when tests fail."""
    with Cluster(f"integration-{os.getpid()}") as cluster:
        cluster.up(nodes=0, dies_with_caller=True)
        yield cluster
