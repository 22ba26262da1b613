"""What a program in a share of a real GPU sees of it."""

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from api import names

if TYPE_CHECKING:
    from tests.gpu.conftest import Card

pytestmark = pytest.mark.gpu

LIMIT = 2048 << 20


def test_cuda_shows_the_share_as_the_card(card: "Card") -> None:
    output = card.run(
        """
        start()
        count, total = c_int(), c_size_t()
        check(cuda.cuDeviceGetCount(byref(count)))
        check(cuda.cuDeviceTotalMem_v2(byref(total), 0))
        say(json.dumps([count.value, total.value, info()[1]]))
        """,
        "--memory",
        "2Gi",
    )
    assert json.loads(output) == [1, LIMIT, LIMIT]


def test_cuda_shows_a_share_of_each_card_as_that_card(card: "Card") -> None:
    output = card.run_on_all(
        """
        check(cuda.cuInit(0))
        count, total, totals = c_int(), c_size_t(), []
        check(cuda.cuDeviceGetCount(byref(count)))
        for ordinal in range(count.value):
            check(cuda.cuDeviceTotalMem_v2(byref(total), ordinal))
            totals.append(total.value)
        say(json.dumps(totals))
        """,
        LIMIT,
    )
    assert json.loads(output) == [LIMIT] * len(card.look_at_all())


def test_nvml_shows_the_share_as_the_card(card: "Card") -> None:
    output = card.run(
        """
        import os, pynvml
        start()
        alloc(256 << 20)
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        say(json.dumps([pynvml.nvmlDeviceGetUUID(gpu), memory.total, memory.used >= 256 << 20, memory.used < 1 << 30]))
        """,
        "--memory",
        "2Gi",
    )
    assert json.loads(output) == [card.look()["uuid"], LIMIT, True, True]


def test_nvidia_smi_shows_a_card_of_the_shares_size(card: "Card") -> None:
    if shutil.which("nvidia-smi", path=card.environment["PATH"]) is None:
        pytest.skip("no nvidia-smi")
    command = [sys.executable, "-m", "dra_driver", "run", "--driver-root", str(card.driver_root), "--device", "0"]
    query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    run = subprocess.run(
        [*command, "--memory", "2Gi", "--", "nvidia-smi", *query],
        env={**card.environment, names.ENV_RUNTIME_DIR: str(card.shares)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.split() == ["2048"]
