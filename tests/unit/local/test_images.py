"""What an image archive has in it, and which archives are kept."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from deploy.local.images import Image, Link, image_of


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VGPU_CACHE_DIR", str(tmp_path / "cache"))


def layer_of(archive: Path, scratch: Path) -> tarfile.TarFile:
    """Return the one layer of an archive."""
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    index = json.loads((scratch / "index.json").read_text())
    blobs = scratch / "blobs"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    return tarfile.open(blobs / manifest["layers"][0]["digest"].replace(":", "/"))


def test_an_image_holds_files_texts_and_links_below_their_folders(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o750)
    files: dict[str, Path | bytes | Link] = {
        "/usr/bin/program": program,
        "/etc/motd": b"hello\n",
        "/bin": Link("usr/bin"),
    }
    archive = Image("localhost/tests/some:1", files).archive()
    with layer_of(archive, tmp_path / "unpacked") as layer:
        kinds = {entry.name: (oct(entry.mode), entry.linkname) for entry in layer}
        assert kinds["usr/bin/program"] == ("0o755", "")
        assert kinds["bin"][1] == "usr/bin"
        assert kinds["tmp"] == ("0o1777", "")
        assert list(kinds).index("usr") < list(kinds).index("usr/bin") < list(kinds).index("usr/bin/program")
        text = layer.extractfile("etc/motd")
        assert text is not None
        assert text.read() == b"hello\n"


def test_the_same_content_is_one_archive_and_other_content_another(tmp_path: Path) -> None:
    first = Image("localhost/tests/some:1", {"/file": b"one"}).archive()
    assert Image("localhost/tests/some:1", {"/file": b"one"}).archive() == first
    second = Image("localhost/tests/some:1", {"/file": b"two"}).archive()
    assert image_of(first)[0] == image_of(second)[0] == "localhost/tests/some:1"
    assert image_of(first)[1] != image_of(second)[1]


def test_an_image_without_a_tag_gets_one_from_its_content() -> None:
    one, two = (Image("localhost/tests/some", {"/file": content}) for content in (b"one", b"two"))
    assert one.reference.startswith("localhost/tests/some:")
    assert one.reference != two.reference
    assert image_of(one.archive())[0] == one.reference


def test_only_the_last_three_archives_of_a_name_are_kept() -> None:
    other = Image("localhost/tests/some-other", {"/file": b"other"}).archive()
    archives = []
    for index in range(5):
        archives.append(Image("localhost/tests/some", {"/file": str(index).encode()}).archive())
        os.utime(archives[-1], (index, index))
    assert [archive.exists() for archive in archives] == [False, False, True, True, True]
    assert other.exists()
