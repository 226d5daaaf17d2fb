"""Presets on real servers: a hub's server costs next to nothing until somebody uses it, and again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Server, eventually, gone

pytestmark = pytest.mark.integration


def test_hub_has_nothing_warm_before_the_first_kernel_and_nothing_left_when_unused(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    metrics = tmp_path / "hub.prom"
    server = kp_start("--KernelPool.preset=hub", "--KernelPool.recipe_idle=12", f"--KernelPool.metrics_file={metrics}")
    eventually(metrics.is_file, "metrics are written")
    assert server.ours() == [], "no supervisor, no template"
    pool = server.call("/kernelpool/v1/pool")[1]
    assert (pool["enabled"], pool["recipes"], pool["capabilities"]["supervisor"]["alive"]) == (True, [], False)
    kernel = server.start_kernel()
    server.wait_warm(1)
    processes = server.ours()
    hits = server.hit()
    second = server.start_kernel()
    assert server.hit() == hits + 1, "the next one comes from the pool"
    for each in (kernel, second):
        assert server.call(f"/api/kernels/{each}", "DELETE")[0] == 204
    eventually(lambda: gone(processes), "template, warm kernels and supervisor go")
    assert server.ours() == []
    third = server.start_kernel()
    assert server.run(third, "print(1)") == "1"
    server.wait_warm(1)


def test_coderunner_has_its_numbers(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.preset=coderunner", "--KernelPool.wait_timeout=1")
    server.wait_warm(2)
    pool = server.call("/kernelpool/v1/pool")[1]
    assert pool["totals"]["max_kernels"] == 5
    kernels = [server.start_kernel() for _ in range(5)]
    status, headers, refusal = server.exchange("/api/kernels", "POST", {"name": "python3"})
    assert (status, refusal["code"]) == (503, "exhausted"), "and the configuration's wait of 1 s holds"
    assert headers["Retry-After"]
    model = server.call(f"/kernelpool/v1/kernels/{kernels[0]}")[1]
    assert model["limits"]["execution_timeout"] == 600
    assert "idle for 300 s" in model["cull"]["why"]
