"""PyTorch in a share of a real GPU: what its users do, with each of its allocators."""

import importlib.util
import json
from typing import TYPE_CHECKING

import pytest

from tests.gpu.conftest import STUB

if TYPE_CHECKING:
    from tests.gpu.conftest import Card

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(STUB, reason="PyTorch does not start on the stub: it needs the CUDA runtime's private tables"),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no PyTorch"),
]

MIB = 1 << 20
LIMIT = 2048 * MIB
MEMORY = ("--memory", "2Gi")
ALLOCATORS = {
    "native": "",
    "expandable segments": "expandable_segments:True",
    "the driver's pools": "backend:cudaMallocAsync",
}


def _program(code: str, allocator: str = "native") -> str:
    # Before torch is imported; both names, since 2.9 has the second.
    setting = ALLOCATORS[allocator]
    return f"""
import os
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = {setting!r}
import torch
{code}
"""


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_it_raises_its_own_error_and_recovers_from_it(allocator: str, card: "Card") -> None:
    output = card.run(
        _program(
            """
for _ in range(3):
    blocks = []
    try:
        while True:
            blocks.append(torch.empty(128 << 20, dtype=torch.uint8, device="cuda").fill_(1))
    except torch.cuda.OutOfMemoryError:
        pass
    held = len(blocks)
    del blocks
    torch.cuda.empty_cache()
    say(held > 4, held <= 16, torch.ones(1000, device="cuda").sum().item())
""",
            allocator,
        ),
        *MEMORY,
    )
    assert output == 3 * "True True 1000.0\n"


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_what_it_gives_back_is_free_again(allocator: str, card: "Card") -> None:
    output = card.run(
        _program(
            """
torch.ones(1, device="cuda")
torch.cuda.synchronize()
before, total = torch.cuda.mem_get_info()
block = torch.empty(512 << 20, dtype=torch.uint8, device="cuda").fill_(1)
during = torch.cuda.mem_get_info()[0]
del block
torch.cuda.synchronize()
torch.cuda.empty_cache()
say(json.dumps([total, before - during, before - torch.cuda.mem_get_info()[0]]))
""",
            allocator,
        ),
        *MEMORY,
    )
    total, taken, left = json.loads(output)
    assert total == LIMIT
    assert 512 * MIB <= taken <= 576 * MIB
    assert left <= 64 * MIB


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_graphs_are_captured_and_replayed(allocator: str, card: "Card") -> None:
    output = card.run(
        _program(
            """
weights = torch.randn(1024, 1024, device="cuda")
given = torch.zeros(1024, 1024, device="cuda")
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(3):
        given @ weights
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    result = (given @ weights).relu() + 1
given.copy_(torch.randn(1024, 1024, device="cuda"))
for _ in range(100):
    graph.replay()
torch.cuda.synchronize()
say(torch.allclose(result, (given @ weights).relu() + 1, rtol=1e-2, atol=1e-2))
""",
            allocator,
        ),
        *MEMORY,
        "--cores",
        "50",
    )
    assert output == "True\n"


def test_a_model_is_trained(card: "Card") -> None:
    output = card.run(
        _program("""
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)).cuda()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
given = torch.randn(512, 64, device="cuda")
wanted = given.sum(1, keepdim=True)
losses = []
for _ in range(200):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(given), wanted)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
say(losses[-1] < losses[0] / 10)
"""),
        *MEMORY,
        "--cores",
        "50",
    )
    assert output == "True\n"


def test_two_processes_of_a_share_have_its_memory_together(card: "Card") -> None:
    hold = _program("""
block = torch.empty(640 << 20, dtype=torch.uint8, device="cuda").fill_(1)
say("holds")
wait_for_line()
""")
    fill = _program("""
blocks = []
try:
    while True:
        blocks.append(torch.empty(64 << 20, dtype=torch.uint8, device="cuda").fill_(1))
except torch.cuda.OutOfMemoryError:
    say(len(blocks) * 64 + 640)
""")
    share = (*MEMORY, "--share", "together")
    with card.start(hold, *share) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        together = int(card.run(fill, *share))
        holder.communicate("\n", timeout=60)
    assert 640 < together <= 2048


def test_a_tensor_can_be_exported_to_other_processes_and_that_costs_nothing(card: "Card") -> None:
    output = card.run(
        _program("""
from torch.multiprocessing import reductions

tensor = torch.full((64 << 20,), 3, dtype=torch.uint8, device="cuda")
before = torch.cuda.mem_get_info()[0]
opened, arguments = reductions.reduce_tensor(tensor)
say(len(arguments) > 5, before == torch.cuda.mem_get_info()[0])
"""),
        *MEMORY,
    )
    assert output == "True True\n"


def test_nccl_reduces_over_a_world_of_one(card: "Card") -> None:
    output = card.run(
        _program("""
import tempfile
import torch.distributed as dist
if not dist.is_nccl_available():
    say("no NCCL")
    sys.exit()
dist.init_process_group("nccl", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
tensor = torch.full((16 << 20,), 2.0, device="cuda")
dist.all_reduce(tensor)
torch.cuda.synchronize()
say(tensor[0].item(), torch.cuda.mem_get_info()[1])
dist.destroy_process_group()
"""),
        *MEMORY,
    )
    if output == "no NCCL\n":
        pytest.skip("this PyTorch has no NCCL")
    assert output == f"2.0 {LIMIT}\n"


def test_nccl_reduces_over_shares_of_two_cards(card: "Card") -> None:
    output = card.run_on_all(
        _program("""
cards = torch.cuda.device_count()
tensors = [torch.full((16 << 20,), float(card), device=f"cuda:{card}") for card in range(cards)]
torch.cuda.nccl.all_reduce(tensors)
for card in range(cards):
    torch.cuda.synchronize(card)
say({tensor[0].item() for tensor in tensors} == {float(sum(range(cards)))})
say({torch.cuda.mem_get_info(card)[1] for card in range(cards)})
"""),
        LIMIT,
    )
    assert output == f"True\n{{{LIMIT}}}\n"
