"""What Prometheus is told of hits, forks and cold starts, as jupyter_server serves it at /metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import Server, eventually

pytestmark = pytest.mark.integration

CLAIMS = "jupyter_kernelpool_claims_total"
WAITS = "jupyter_kernelpool_claim_wait_seconds_count"
STARTS = "jupyter_kernelpool_start_seconds_count"
LAUNCHES = "jupyter_kernelpool_launch_seconds_count"
PROCESSES = "jupyter_kernelpool_processes"
KERNEL_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


def text(server: Server) -> str:
    status, page = server.call("/metrics")
    assert status == 200
    return str(page)


def value(server: Server, name: str, **labels: str) -> float:
    """The sample of series *name* with *labels*; 0 where there is none."""
    for family in text_string_to_metric_families(text(server)):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0


def test_a_hit_is_counted(kp_server: Server) -> None:
    kp_server.wait_warm()
    claims = value(kp_server, CLAIMS, recipe="python3", outcome="hit")
    waits, starts = value(kp_server, WAITS), value(kp_server, STARTS, way="template")
    kp_server.start_kernel()
    assert value(kp_server, CLAIMS, recipe="python3", outcome="hit") == claims + 1
    assert value(kp_server, WAITS) == waits + 1
    eventually(lambda: value(kp_server, STARTS, way="template") == starts + 1, "the start is measured")
    assert value(kp_server, LAUNCHES, way="template") >= 2


def test_gauges_follow_a_kernel_to_its_end(kp_server: Server) -> None:
    def by_state() -> dict[str, float]:
        return {state: value(kp_server, PROCESSES, state=state) for state in ("warm", "active", "stopping", "starting")}

    def settled() -> bool:
        return by_state()["warm"] == 2 and by_state()["starting"] == by_state()["stopping"] == 0

    kp_server.wait_warm()
    eventually(settled, "the pool is full")
    before = by_state()
    assert before["active"] == len(kp_server.call("/api/kernels")[1])
    kernel = kp_server.start_kernel()
    eventually(settled, "the pool is full again")
    assert by_state() == {**before, "active": before["active"] + 1}
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: by_state() == before, "as before the kernel")
    assert value(kp_server, "jupyter_kernelpool_templates") == 1


def test_a_fork_on_demand_is_counted(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.warm=0")
    eventually(lambda: server.recipe().get("template"), "the template is loaded")
    server.start_kernel()
    assert value(server, CLAIMS, recipe="python3", outcome="forked") == 1
    assert value(server, CLAIMS, recipe="python3", outcome="hit") == 0
    assert value(server, WAITS) == 1


def test_a_cold_start_is_counted_and_its_gauge_goes_back(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.preload=no_such_module")
    eventually(lambda: server.recipe().get("last_error"), "the template failed")
    assert value(server, "jupyter_kernelpool_failures_total", recipe="python3") >= 1
    kernel = server.start_kernel()
    assert value(server, CLAIMS, recipe="python3", outcome="cold") == 1
    assert value(server, STARTS, way="cold") == 1
    assert value(server, PROCESSES, state="active") == 1
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: value(server, PROCESSES, state="active") == 0, "the gauge goes back")


def test_a_failed_cold_start_leaves_no_gauge(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_warm=0", "--KernelPool.warm=0")
    status, _ = server.call("/api/kernels", "POST", {"name": "python3", "path": "no/such/folder"})
    kernel = server.start_kernel()
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert value(server, PROCESSES, state="active") == len(server.call("/api/kernels")[1]), status
    assert value(server, PROCESSES, state="starting") == 0


def test_evictions_are_counted_with_their_reason(kp_server: Server) -> None:
    kp_server.wait_warm()
    why = "drained over REST"
    before = value(kp_server, "jupyter_kernelpool_evictions_total", why=why)
    assert kp_server.call("/kernelpool/v1/pools/python3", "PATCH", {"drain": True})[0] == 200
    assert value(kp_server, "jupyter_kernelpool_evictions_total", why=why) == before + 2


def test_no_kernel_id_is_a_label(kp_server: Server) -> None:
    kernel = kp_server.start_kernel()
    page = text(kp_server)
    ours = [line for line in page.splitlines() if line.startswith("jupyter_kernelpool_")]
    assert ours
    assert kernel not in page
    assert not [line for line in ours if KERNEL_ID.search(line)]
    labels = {name for line in ours for name in re.findall(r'(\w+)="', line)}
    assert labels <= {
        "recipe", "outcome", "way", "state", "why", "le", "type", "cause", "limit", "operation", "code", "kind",
        "alert", "of", "verdict",
    }  # fmt: skip
