"""Which builds there are, and what is said of one that is not."""

from pathlib import Path

import pytest

from deploy.local import building, gotoolchain
from deploy.local.errors import BuildError, LocalClusterError
from deploy.local.layout import Layout


def test_a_build_that_fails_shows_the_end_of_the_compilers_output(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module broken\n\ngo 1.21\n")
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    build = building.GoBuild("the broken one", tmp_path / "go.mod", (".",))
    with pytest.raises(BuildError, match=r"(?s)building the broken one failed:\n.*main.go:3:15: undefined: missing"):
        building.go_build(build, tmp_path / "broken")


def test_the_go_that_a_module_needs_is_read_from_its_go_line(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module some\n\ngo 1.26.6\n")
    assert gotoolchain.needed_version(tmp_path / "go.mod") == (1, 26, 6)


def test_a_state_folder_that_nodes_could_not_see_is_refused() -> None:
    with pytest.raises(LocalClusterError) as refused:
        Layout.of("some", Path("/var/lib/clusters/some"))
    assert str(refused.value) == (
        "state folder /var/lib/clusters/some lies in /var/lib, where nodes have folders of their own: choose another "
        "with --state-dir or VGPU_CACHE_DIR"
    )
