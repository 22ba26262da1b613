"""Container images without a registry or a daemon: OCI archives written in Python, kept by their content.

Called by cluster.py for the pause image, and by the demo and tests for images of their own; imagecontents.py collects
what goes into them.
"""

import contextlib
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.local.caching import build_once, cache_dir, digest
from deploy.local.errors import BuildError
from deploy.local.nodeconfig import PAUSE_IMAGE

PAUSE_SOURCE = Path(__file__).parent / "pause.c"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Any content of an image may be executable: who runs it decides, and it is test equipment.
_TAR_FORMAT = tarfile.GNU_FORMAT
# Every change of a program is a new image of it, of up to hundreds of megabytes.
KEPT_ARCHIVES = 3


@dataclass(frozen=True)
class Link:
    """A symbolic link in an image."""

    target: str


Content = Path | bytes | Link


@dataclass(frozen=True)
class Image:
    """An image of one layer: absolute path in the image to the file of this machine, the bytes, or the link there."""

    name: str
    """With a tag, or without: then the tag is made from the content, so that a changed image is another one to pods."""
    files: Mapping[str, Content]
    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def archive(self) -> Path:
        """Return the image as an OCI archive, written if this very content was not written before."""
        folder = cache_dir() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        label = self.name.rpartition("/")[2].partition(":")[0]
        archive = build_once(folder / f"{label}-{self._key()}.tar", self._write)
        archive.touch()
        remove_all_but_newest(folder, f"{label}-{'?' * len(self._key())}.tar")
        return archive

    @property
    def reference(self) -> str:
        """The name with its tag."""
        return self.name if ":" in self.name.rpartition("/")[2] else f"{self.name}:{self._key()}"

    def _key(self) -> str:
        # Size and time of change stand for the content of a file, as in make: an image has thousands of them.
        parts = [repr((self.name, list(self.entrypoint), dict(self.environment))).encode()]
        for path, content in sorted(self.files.items(), key=lambda item: item[0]):
            if isinstance(content, Path):
                stat = content.stat()
                parts.append(f"{path} {content} {stat.st_size} {stat.st_mtime_ns} {stat.st_mode}".encode())
            else:
                parts.append(f"{path} {content!r}".encode())
        return digest(parts)

    def _write(self, target: Path) -> None:
        layer = target.with_suffix(".layer")
        with tarfile.open(layer, "w", format=_TAR_FORMAT) as tar:
            _add_folders(tar, self.files)
            for path, content in sorted(self.files.items(), key=lambda item: item[0]):
                _add(tar, path.lstrip("/"), content)
        with layer.open("rb") as stream:
            layer_hash = hashlib.file_digest(stream, "sha256").hexdigest()
        architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        config = _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {
                    "Entrypoint": list(self.entrypoint),
                    "Env": [f"{name}={value}" for name, value in self._environment().items()],
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_hash}"]},
                "history": [{"created_by": "deploy/local/images.py"}],
            }
        )
        types = "application/vnd.oci.image"
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{types}.manifest.v1+json",
                "config": _descriptor(f"{types}.config.v1+json", _sha256(config), len(config)),
                "layers": [_descriptor(f"{types}.layer.v1.tar", layer_hash, layer.stat().st_size)],
            }
        )
        index = _descriptor(f"{types}.manifest.v1+json", _sha256(manifest), len(manifest))
        index["annotations"] = {
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference,
        }
        index["platform"] = {"architecture": architecture, "os": "linux"}
        with tarfile.open(target, "w", format=_TAR_FORMAT) as tar:
            _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [index]}))
            for blob in (config, manifest):
                _add(tar, f"blobs/sha256/{_sha256(blob)}", blob)
            _add(tar, f"blobs/sha256/{layer_hash}", layer)

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", **self.environment}


def remove_all_but_newest(folder: Path, pattern: str, kept: int = KEPT_ARCHIVES) -> None:
    """Remove the files of a pattern that were not used for the longest time."""
    times: dict[Path, float] = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another run removes it, too
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=lambda path: times[path], reverse=True)[kept:]:
        path.unlink(missing_ok=True)


def image_of(archive: Path) -> tuple[str, str]:
    """Return the name and the digest of the image in an OCI archive that Image.archive() wrote."""
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        if index is None:
            raise BuildError(f"{archive} is no OCI archive: it has no index.json")
        (manifest,) = json.load(index)["manifests"]
    return str(manifest["annotations"]["io.containerd.image.name"]), str(manifest["digest"])


def pause_program() -> Path:
    """Return the static program that does nothing: the content of the pause image, and the first process of a node."""

    def compile_it(target: Path) -> None:
        command = ["cc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(PAUSE_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"the C compiler could not build {PAUSE_SOURCE.name}:\n{done.stderr.strip()}")

    folder = cache_dir() / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    return build_once(folder / f"pause-{digest([PAUSE_SOURCE.read_bytes()])}", compile_it)


def pause_image() -> Image:
    """Return the image of a pod's sandbox."""
    return Image(name=PAUSE_IMAGE, files={"/pause": pause_program()}, entrypoint=["/pause"])


def _add_folders(tar: tarfile.TarFile, files: Mapping[str, Content]) -> None:
    folders = {str(parent) for path in files for parent in PurePosixPath(path.lstrip("/")).parents} | {
        "tmp",
        "run",
        "etc",
    }
    linked = {path.lstrip("/") for path, content in files.items() if isinstance(content, Link)}
    for folder in sorted(folders - linked - {"."}):
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        entry.mode = 0o1777 if folder == "tmp" else 0o755
        tar.addfile(entry)


def _add(tar: tarfile.TarFile, path: str, content: Content) -> None:
    entry = tarfile.TarInfo(path)
    if isinstance(content, Link):
        entry.type, entry.linkname = tarfile.SYMTYPE, content.target
        tar.addfile(entry)
    elif isinstance(content, bytes):
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    else:
        stat = content.stat()
        # The time is kept: Python's compiled files are valid only for sources of the time they name.
        entry.size, entry.mtime = stat.st_size, int(stat.st_mtime)
        # Whoever the pod's user is can read and run it, even if here only its owner can.
        entry.mode = 0o755 if stat.st_mode & 0o100 else 0o644
        with content.open("rb") as stream:
            tar.addfile(entry, stream)


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
