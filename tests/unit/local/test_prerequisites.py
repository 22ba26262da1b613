"""What the local cluster says of a machine that lacks something."""

from pathlib import Path

import pytest

from deploy.local import prerequisites
from deploy.local.errors import MissingPackagesError
from deploy.local.prerequisites import Need


def need(what: str, package: str, *, there: bool) -> Need:
    return Need(what, package, lambda: there)


def test_everything_that_is_missing_is_named_at_once_with_one_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = (
        need("ip", "iproute2", there=False),
        need("pkg-config", "pkg-config", there=True),
        need("the headers of libseccomp", "libseccomp-dev", there=False),
    )
    monkeypatch.setattr(prerequisites, "NODES", nodes)
    with pytest.raises(MissingPackagesError) as missing:
        prerequisites.check(nodes=True)
    assert str(missing.value) == (
        "this machine lacks ip, the headers of libseccomp. On Debian or Ubuntu:\n"
        "  apt-get install -y --no-install-recommends iproute2 libseccomp-dev"
    )


def test_a_control_plane_alone_needs_nothing_that_only_nodes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "NODES", (need("ip", "iproute2", there=False),))
    prerequisites.check(nodes=False)


def test_a_program_that_is_on_no_path_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = prerequisites.missing(prerequisites.NODES)
    assert "a C compiler (cc)" in [need.what for need in lacking]
