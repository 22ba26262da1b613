"""Whether the node's container runtime gives GPUs to containers that have no claim for them."""

from pathlib import Path

import pytest

from kubeletplugin.hardware.openruntimes import tell_of_open_runtimes

ENVIRONMENT = "accept-nvidia-visible-devices-envvar-when-unprivileged"
VOLUMES = "accept-nvidia-visible-devices-as-volume-mounts"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", f"{ENVIRONMENT} = false"),
        (f"{ENVIRONMENT} = false\n{VOLUMES} = true\n", f"{VOLUMES} = false"),  # as Bottlerocket has it
        (f"{ENVIRONMENT} = true\n{VOLUMES} = true\n", f"{ENVIRONMENT} = false and {VOLUMES} = false"),
        (f"{ENVIRONMENT} = false\n[nvidia-container-runtime]\nmode = 'auto'\n", None),
        ("not = [toml", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("folder", ["etc", "usr/local/nvidia/toolkit/.config"])
def test_a_runtime_that_gives_gpus_to_whoever_asks_is_told(
    folder: str, config: str | None, expected: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / folder / "nvidia-container-runtime/config.toml"
    path.parent.mkdir(parents=True)
    if config is not None:
        path.write_text(config)

    tell_of_open_runtimes(tmp_path)

    said = [(record.getMessage(), vars(record)["file"], vars(record)["expected"]) for record in caplog.records]
    message = "NVIDIA's container runtime gives GPUs to containers without a claim"
    assert said == ([] if expected is None else [(message, f"/{path.relative_to(tmp_path)}", expected)])
