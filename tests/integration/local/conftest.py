"""A cluster with one node, once for all tests of the local cluster that do not end it, and what pods of it run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import imagecontents
from deploy.local.cluster import Cluster
from deploy.local.images import Image
from deploy.local.prerequisites import obstacle_to_containers
from tests.integration.local.pods import Pods

needs_containers = pytest.mark.skipif(bool(obstacle_to_containers()), reason="containers cannot run on this machine")


@pytest.fixture(scope="session")
def shell_image() -> Path:
    return imagecontents.workload({}).archive()


@pytest.fixture(scope="session")
def python_image() -> Path:
    files = imagecontents.python() | imagecontents.shell()
    return Image(name="localhost/tests/python:local", files=files).archive()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster(f"local-{os.getpid()}") as cluster:
        cluster.up(nodes=1, dies_with_caller=True)
        yield cluster


@pytest.fixture(scope="session")
def pods(cluster: Cluster, shell_image: Path) -> Pods:
    cluster.load_image(shell_image)
    return Pods(cluster)


@pytest.fixture
def new_cluster() -> Iterator[Callable[[], Cluster]]:
    """A function that returns another cluster that is not up yet; all of them are removed after the test."""
    made: list[Cluster] = []

    def make() -> Cluster:
        made.append(Cluster(f"local-{os.getpid()}-{len(made)}"))
        return made[-1]

    yield make
    for cluster in made:
        cluster.down()
