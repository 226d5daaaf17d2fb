"""For those who write a launcher or an enforcer: fakes, and the contract that each of them keeps."""

from jupyter_kernelpool.testing.enforcers import EnforcerContract, FakeEnforcer
from jupyter_kernelpool.testing.launchers import (
    BEYOND_PIDS,
    FakeLauncher,
    FakeProcess,
    FakeSupervision,
    LauncherBench,
    Outcome,
    Script,
    Step,
    fake_identity,
    fake_recipe,
    fake_request,
    launcher_contract,
    log,
    python_spec,
)

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
    "fake_identity",
    "fake_recipe",
    "fake_request",
    "launcher_contract",
    "log",
    "python_spec",
]
