"""What one kernel's manager tells the server's of its restarts."""

from __future__ import annotations

from types import SimpleNamespace

from jupyter_kernelpool.pooled import PooledKernelManager


def test_restart_that_came_to_nothing_gives_the_next_one_no_reason():
    """As where its user went back to a checkpoint before the restart that was to follow its death."""
    told = []
    nothing = SimpleNamespace(began=lambda _: None, has_process=lambda _: None, restarts=lambda _: None)

    class Kernel(PooledKernelManager):
        _server = SimpleNamespace(
            culler=nothing,
            care=SimpleNamespace(has_process=nothing.has_process, aftermath=nothing),
            chronicle=SimpleNamespace(restarts=lambda kernel_id, cause, reason: told.append((cause, reason))),
        )

    kernel = Kernel()
    kernel.restarts_for = "died", "Its process ended"
    kernel._begins_anew()
    kernel.kernel_restarts()
    assert told == [("asked", "")]
