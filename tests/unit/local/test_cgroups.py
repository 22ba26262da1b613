"""Where the controllers of cgroup v2 can be handed down to pods."""

from pathlib import Path

from deploy.local.cgroups import obstacle_to_delegation


def hierarchy(root: Path, controllers: str, handed_down: str, processes: str) -> Path:
    """Return the root of a hierarchy as a container sees it: a cgroup with a type."""
    files = {"controllers": controllers, "subtree_control": handed_down, "procs": processes, "type": "domain"}
    for name, content in files.items():
        (root / f"cgroup.{name}").write_text(content)
    return root


def test_an_empty_cgroup_hands_down_its_controllers(tmp_path: Path) -> None:
    assert obstacle_to_delegation(hierarchy(tmp_path, "cpu memory pids io", "", "")) == ""


def test_a_cgroup_with_processes_hands_down_nothing_unless_it_already_does(tmp_path: Path) -> None:
    root = hierarchy(tmp_path, "cpu memory pids", "", "1\n2\n")
    assert obstacle_to_delegation(root) == f"{root} holds processes, so its cgroup controllers cannot be handed down"
    hierarchy(tmp_path, "cpu memory pids", "cpu memory pids", "1\n2\n")
    assert obstacle_to_delegation(root) == ""


def test_the_true_root_of_the_hierarchy_may_hold_processes(tmp_path: Path) -> None:
    root = hierarchy(tmp_path, "cpu memory pids", "", "1\n")
    (root / "cgroup.type").unlink()
    assert obstacle_to_delegation(root) == ""


def test_a_controller_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = hierarchy(tmp_path, "cpu io", "", "")
    assert obstacle_to_delegation(root) == f"{root} has no cgroup controller memory, pids"
