"""CUDA on a real device: what templates and forks may carry, and what is told of it.

Needs an NVIDIA GPU, nvidia-ml-py and a PyTorch with CUDA: `./dev test -m gpu` on a machine with them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Server, eventually
from .test_forking import fork, post
from .test_usage import metric, usage

pytestmark = [pytest.mark.integration, pytest.mark.gpu]

GIB = 1 << 30
COMPUTE = "import torch\nprint(int((torch.ones(300, 300, device='cuda') @ torch.ones(300, 300, device='cuda')).sum()))"
COMPUTED = str(300**3)


def test_usage_tells_what_a_kernel_has_on_the_gpu(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    assert usage(kp_server, kernel)["gpu"] == []
    kp_server.run(client, "import torch\nx = torch.zeros(1 << 28, device='cuda')\ntorch.cuda.synchronize()")
    (device,) = usage(kp_server, kernel)["gpu"]
    assert device["memory"] > GIB, "and what CUDA keeps for itself"
    assert device["memory"] < 2 * GIB < device["total"]
    name = kp_server.run(client, "print(torch.cuda.get_device_name(), torch.cuda.current_device())")
    assert name == f"{device['name']} {device['index']}"
    eventually(lambda: metric(kp_server, "gpu_memory_bytes") > GIB, "the gauge rises")
    kp_server.run(client, "del x\ntorch.cuda.empty_cache()")
    eventually(lambda: 0 < usage(kp_server, kernel)["gpu"][0]["memory"] < GIB, "it is told that memory was given back")
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: metric(kp_server, "gpu_memory_bytes") == 0, "the gauge goes back")


def test_what_a_child_has_on_the_gpu_is_its_kernels(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(
        client,
        "import subprocess, sys\n"
        "code = \"import torch; x = torch.zeros(1 << 28, device='cuda'); print('has', flush=True); input()\"\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdin=-1, stdout=-1)\nchild.stdout.readline()",
        timeout=120,
    )
    (device,) = usage(kp_server, kernel)["gpu"]
    assert device["memory"] > GIB
    kp_server.run(client, "child.communicate(b'\\n')")
    assert usage(kp_server, kernel)["gpu"] == []


def test_a_fork_uses_the_gpu_that_its_parent_only_imported(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "import torch\nx = torch.arange(5.0)")
    (forked,) = fork(kp_server, kernel)
    for each in (kp_server.client(forked), client):
        assert kp_server.run(each, "print(int(x.cuda().sum()))") == "10"


def test_a_kernel_that_used_the_gpu_says_why_it_is_not_forked(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "import torch\nx = torch.ones(4, device='cuda')")
    for path in ("fork", "checkpoints"):
        refused = post(kp_server, f"/kernels/{kernel}/{path}", {}, 501)
        assert (refused["code"], refused["reason"]) == ("cannot_fork", "cuda"), refused
    assert kp_server.run(client, "print(int(x.sum()))") == "4", "nothing happened to it"


@pytest.mark.parametrize("question", ["torch.cuda.is_available()", "torch.cuda.device_count()", "torch.version.cuda"])
def test_a_fork_has_the_gpu_or_is_refused_after_a_mere_question(kp_server: Server, kernel: str, question: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, f"import torch\nanswer = {question}")
    status, model = kp_server.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {})
    if status == 201:
        assert kp_server.run(model["kernels"][0]["id"], COMPUTE) == COMPUTED
    else:
        assert (model["code"], model["reason"]) == ("cannot_fork", "cuda"), model
    assert kp_server.run(client, COMPUTE) == COMPUTED


def test_a_checkpoint_from_before_the_gpu_was_used_brings_back_a_kernel_that_can_use_it(
    kp_server: Server, kernel: str
) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "import torch\nx = 'before'")
    taken = post(kp_server, f"/kernels/{kernel}/checkpoints", {})["id"]
    kp_server.run(client, f"x = 'after'\n{COMPUTE}")
    (forked,) = (each["id"] for each in post(kp_server, f"/checkpoints/{taken}/fork", {})["kernels"])
    assert kp_server.run(forked, f"{COMPUTE}; print(x)") == f"{COMPUTED}\nbefore"


def test_kernels_of_a_template_with_pytorch_in_it_use_the_gpu(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.preload=torch")
    server.wait_warm(1)
    for _ in range(2):
        kernel = server.start_kernel()
        assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "template"
        client = server.client(kernel)
        assert server.run(client, "import sys; print('torch' in sys.modules)") == "True"
        assert server.run(client, COMPUTE) == COMPUTED


@pytest.mark.parametrize(
    "code",
    ["import torch; torch.cuda.is_available()", "import torch; torch.ones(1, device='cuda')"],
    ids=["asked", "used"],
)
def test_no_kernel_is_forked_from_a_template_whose_init_code_began_cuda(
    kp_start: Callable[..., Server], code: str
) -> None:
    server = kp_start(f"--KernelPool.init_code={code}")
    kernel = server.start_kernel()
    assert server.run(kernel, COMPUTE) == COMPUTED
    told = server.recipe()
    assert told["warm"] > 0 or "CUDA" in str(told["last_error"]) or "threads" in str(told["last_error"]), told


def test_memory_on_the_gpu_and_reserved_addresses_are_not_taken_for_a_kernels_memory(
    kp_start: Callable[..., Server],
) -> None:
    """CUDA reserves hundreds of gigabytes of addresses and pins memory; a limit must not count those."""
    server = kp_start("--KernelLimits.memory=3G")
    server.wait_warm(1)
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["limits"]["memory"] == 3 * GIB
    client = server.client(kernel)
    code = "import torch\nx = torch.zeros(1 << 30, device='cuda')\ntorch.cuda.synchronize()\nprint(x.nbytes)"
    assert server.run(client, code) == str(4 * GIB)
    told = usage(server, kernel)
    assert told["gpu"][0]["memory"] > 4 * GIB
    assert told["memory"]["private"] < 3 * GIB
    assert server.run(client, COMPUTE) == COMPUTED
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None
