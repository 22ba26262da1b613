"""An API server in memory, and a controller at work on it."""

import os
from collections.abc import Iterator

import pytest

from api.kubefake import FakeKube
from controller.controller import Controller
from tests.unit.controller.builders import CLASSES, device_class, make_controller


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube()
    fake.create(CLASSES, device_class())
    yield fake
    fake.set_down(True)  # ends the watches


@pytest.fixture
def controller(kube: FakeKube) -> Iterator[Controller]:
    started = make_controller(kube)
    started.start()
    yield started
    started.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a long search of the state machines take its time."""
    if "VGPU_CHANCES" in os.environ:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
