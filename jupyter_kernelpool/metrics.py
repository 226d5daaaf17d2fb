"""What Prometheus is told, on the default registry that jupyter_server serves at `/metrics`.

Never a kernel id as a label. `record_moved` hangs on every record.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from jupyter_kernelpool.lifecycle import Move, Record, State

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CLAIMS = Counter(
    "jupyter_kernelpool_claims",
    "Kernel starts that asked the pool, by outcome: hit (was warm), forked (made for it), cold (stock start)",
    ["recipe", "outcome"],
)
CLAIM_WAIT = Histogram(
    "jupyter_kernelpool_claim_wait_seconds", "Time from asking the pool to an adopted kernel", buckets=QUICK
)
START = Histogram(
    "jupyter_kernelpool_start_seconds",
    "Time from asking for a kernel to its being ready, by the way it came to be",
    ["way"],
    buckets=QUICK,
)
LAUNCH = Histogram("jupyter_kernelpool_launch_seconds", "Time to launch a warm kernel, by way", ["way"], buckets=QUICK)
PROCESSES = Gauge("jupyter_kernelpool_processes", "Kernel processes of the pool, by state", ["state"])
TEMPLATES = Gauge("jupyter_kernelpool_templates", "Templates that are loaded")
FAILURES = Counter("jupyter_kernelpool_failures", "Launches and loads that failed", ["recipe"])
KERNELS_MEMORY = Gauge(
    "jupyter_kernelpool_kernels_private_memory_bytes", "Memory that the server's kernels have for themselves, together"
)
KERNELS_CPU = Counter("jupyter_kernelpool_kernels_cpu_seconds", "Processor time of the server's kernels, together")
KERNELS_PROCESSES = Gauge("jupyter_kernelpool_kernels_processes", "Processes of the server's kernels, together")
KERNELS_FDS = Gauge("jupyter_kernelpool_kernels_open_fds", "Open descriptors of the server's kernels, together")
KERNELS_GPU_MEMORY = Gauge(
    "jupyter_kernelpool_kernels_gpu_memory_bytes", "Memory of the server's kernels on GPUs, together"
)
EVICTIONS = Counter("jupyter_kernelpool_evictions", "Warm kernels ended unused, by reason", ["why"])


def record_born(record: Record) -> None:
    """Count a new record, and follow its moves."""
    PROCESSES.labels(state=record.state.value).inc()
    record.on_move = record_moved


def record_moved(record: Record, move: Move) -> None:
    """Keep the gauges by state right; called by `Record.move`."""
    previous = record.story[-2].to
    PROCESSES.labels(state=previous.value).dec()
    if move.to is not State.DEAD:
        PROCESSES.labels(state=move.to.value).inc()
