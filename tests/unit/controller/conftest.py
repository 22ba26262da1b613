"""An API server in memory, and a controller at work on it."""

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
