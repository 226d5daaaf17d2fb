"""For those who write a launcher or an enforcer: fakes, and the contract that each of them keeps."""

from jupyter_kernelpool.testing.enforcers import EnforcerContract
from jupyter_kernelpool.testing.fakes import (
    BEYOND_PIDS,
    FakeEnforcer,
    FakeLauncher,
    FakeProcess,
    FakeSupervision,
    Outcome,
    Script,
    Step,
    fake_adoption,
    fake_recipe,
    fake_request,
    log,
    python_spec,
)
from jupyter_kernelpool.testing.launchers import LauncherBench, launcher_contract

__all__ = [
    "BEYOND_PIDS",
    "EnforcerContract",
    "FakeEnforcer",
    "FakeLauncher",
    "FakeProcess",
    "FakeSupervision",
    "LauncherBench",
    "Outcome",
    "Script",
    "Step",
    "fake_adoption",
    "fake_recipe",
    "fake_request",
    "launcher_contract",
    "log",
    "python_spec",
]
