"""What Prometheus is told, on the default registry that jupyter_server serves at `/metrics`.

Never a kernel id as a label. `record_moved` hangs on every record.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from jupyter_kernelpool.errors import KernelPoolError
from jupyter_kernelpool.health import Verdict
from jupyter_kernelpool.lifecycle import Move, Record, State

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LONG = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

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
    "Time from asking for a kernel to its being ready, by the way it came to be; of cold ones, to its process",
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
NUDGES = Counter("jupyter_kernelpool_nudges", "Kernels asked whether they answer, by what they were found", ["verdict"])
NUDGE_ROUND_TRIP = Histogram(
    "jupyter_kernelpool_nudge_round_trip_seconds",
    "Time from asking a kernel on its control channel to its answer",
    buckets=QUICK,
)
RECOVERY = Histogram(
    "jupyter_kernelpool_recovery_seconds",
    "Time from a kernel's silence or its process's end to its answering again, by cause (unresponsive, died)",
    ["cause"],
    buckets=LONG,
)
ADOPTED = Counter("jupyter_kernelpool_adopted_kernels", "Kernels that ran already, and were adopted")
EVICTIONS = Counter("jupyter_kernelpool_evictions", "Warm kernels ended unused, by reason", ["why"])

EVENTS = Counter("jupyter_kernelpool_events", "Events in the lives of kernels, by type", ["type"])
EXECUTION = Histogram(
    "jupyter_kernelpool_execution_seconds",
    "How long cells ran, without waiting for input, by outcome (ok, error, timeout, killed, died, cancelled)",
    ["outcome"],
    buckets=LONG,
)
EXECUTION_ERRORS = Counter(
    "jupyter_kernelpool_execution_errors",
    "Cells that came to no good end, by kind (exception, interrupted, timeout, killed, died, cancelled, aborted)",
    ["kind"],
)
OUTPUT = Histogram("jupyter_kernelpool_execution_output_bytes", "Output of cells", buckets=SIZES)
START_FAILURES = Counter("jupyter_kernelpool_start_failures", "Kernels that did not start")
RESTARTS = Counter("jupyter_kernelpool_restarts", "Kernels restarted, by cause", ["cause"])
UNRESPONSIVE = Counter("jupyter_kernelpool_unresponsive", "Kernels found not to answer, by cause", ["cause"])
BREACHES = Counter("jupyter_kernelpool_breaches", "Limits crossed, and what was done", ["limit", "outcome"])
CULLS = Counter("jupyter_kernelpool_culls", "Kernels that were culled, by cause", ["cause"])
FORKING = Histogram(
    "jupyter_kernelpool_forking_seconds", "Time of a fork, a checkpoint or a restore", ["operation"], buckets=QUICK
)
FORKING_FAILURES = Counter(
    "jupyter_kernelpool_forking_failures",
    "Forks, checkpoints and restores that came to nothing, by error code",
    ["operation", "code"],
)
WEBSOCKETS = Gauge("jupyter_kernelpool_websocket_connections", "Kernel websockets that are open")
CONNECTS = Counter(
    "jupyter_kernelpool_websocket_connects", "Kernel websockets asked for, by outcome (opened, failed)", ["outcome"]
)
RECONNECTS = Counter("jupyter_kernelpool_websocket_reconnects", "Websockets opened anew by a session known before")
CONNECTED = Histogram(
    "jupyter_kernelpool_websocket_duration_seconds", "How long kernel websockets were open", buckets=LONG
)
WEBSOCKET_ERRORS = Counter(
    "jupyter_kernelpool_websocket_errors",
    "What went wrong on websockets (dropped: no closing handshake; write: sent to one that had gone; incoming: no "
    "message)",
    ["kind"],
)
WEBSOCKET_SENT = Counter("jupyter_kernelpool_websocket_sent_bytes", "Messages to clients over websockets")
ALERTS = Gauge("jupyter_kernelpool_alert_firing", "1 while the alert fires", ["alert"])
SESSION_RECONNECTS = Gauge(
    "jupyter_kernelpool_session_reconnects", "Reconnects of the session that had most of them of late"
)
SLOWNESS = Gauge(
    "jupyter_kernelpool_slowness_ratio", "What starts and executions took of late, as a multiple of the usual", ["of"]
)

# A series that begins with its first event is missed by `increase`.
for _outcome in ("ok", "error", "timeout", "killed", "died", "cancelled"):
    EXECUTION.labels(outcome=_outcome)
for _kind in ("exception", "interrupted", "timeout", "killed", "died", "cancelled", "aborted"):
    EXECUTION_ERRORS.labels(kind=_kind)
for _cause in ("asked", "died", "limit", "unresponsive"):
    RESTARTS.labels(cause=_cause)
for _cause in ("unresponsive", "died"):
    RECOVERY.labels(cause=_cause)
for _cause in ("wedged", "stopped", "hung"):
    UNRESPONSIVE.labels(cause=_cause)
for _verdict in Verdict:
    NUDGES.labels(verdict=_verdict.value)
for _cause in ("idle", "busy", "age", "memory"):
    CULLS.labels(cause=_cause)
for _outcome in ("opened", "failed"):
    CONNECTS.labels(outcome=_outcome)
for _kind in ("dropped", "write", "incoming"):
    WEBSOCKET_ERRORS.labels(kind=_kind)


def own() -> list[Collector]:
    """Every metric of ours."""
    return [value for value in globals().values() if isinstance(value, MetricWrapperBase)]


@asynccontextmanager
async def timed(operation: str) -> AsyncIterator[None]:
    """Measure a fork, a checkpoint or a restore; one that fails is counted with its error's code."""
    began = time.monotonic()
    try:
        yield
    except KernelPoolError as error:
        FORKING_FAILURES.labels(operation=operation, code=error.code).inc()
        raise
    FORKING.labels(operation=operation).observe(time.monotonic() - began)


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
