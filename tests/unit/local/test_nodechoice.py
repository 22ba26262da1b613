"""Whether nodes run containers or processes on this machine, and what the person who asked is told."""

import os

import pytest

from deploy.local.errors import LocalClusterError
from deploy.local.prerequisites import reason_for_process_nodes


def test_without_root_nodes_are_processes_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGPU_NODES", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert reason_for_process_nodes() == "not started as root"


def test_the_environment_decides_before_the_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("VGPU_NODES", "containers")
    assert reason_for_process_nodes() == ""
    monkeypatch.setenv("VGPU_NODES", "processes")
    assert reason_for_process_nodes() == "VGPU_NODES=processes"


def test_another_choice_than_these_two_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPU_NODES", "pods")
    with pytest.raises(LocalClusterError) as error:
        reason_for_process_nodes()
    assert str(error.value) == "VGPU_NODES: found 'pods', expected processes or containers"
