"""Every enforcer keeps the contract, and the contract finds one that does nothing right."""

import os
import signal
from pathlib import Path

import pytest

from jupyter_kernelpool.limits.base import Enforcer, Reading
from jupyter_kernelpool.limits.cgroup import CgroupEnforcer
from jupyter_kernelpool.limits.rlimit import RlimitEnforcer
from jupyter_kernelpool.limits.watchdog import WatchdogEnforcer
from jupyter_kernelpool.testing import EnforcerContract, FakeEnforcer


class TestCgroup(EnforcerContract):
    enforcer_class = CgroupEnforcer


class TestRlimit(EnforcerContract):
    enforcer_class = RlimitEnforcer


class TestWatchdog(EnforcerContract):
    enforcer_class = WatchdogEnforcer


class TestFake(EnforcerContract):
    enforcer_class = FakeEnforcer


class Careless(Enforcer):
    """Leaves a file, reads strangers, blames memory, ends the wrong ones and says that it ended all."""

    name = "careless"
    holds = frozenset({"memory", "patience"})
    folder = ""

    def prepare(self):
        self.leave()
        return {"cpu": "", "patience": "-"}

    def leaves(self):
        return {f"{self.folder}/left": "/"}

    def leave(self):
        Path(self.folder, "left").touch()

    def hold(self, subject, allowance, limits):
        self.leave()
        if not allowance.limited:
            os.kill(subject.pid, signal.SIGKILL)

    def read(self, subjects, others):
        return {"worker/9": Reading({"memory": -1.0})}

    def why_ended(self, subject):
        return "memory", 0

    def end(self, subject):
        return True

    def set_apart(self, pid):
        os.kill(pid, signal.SIGKILL)

    def let_go(self, kernel_id):
        raise KeyError(kernel_id)


@pytest.mark.parametrize("check", [name for name in dir(EnforcerContract) if name.startswith("test_")])
def test_contract_finds_an_enforcer_that_does_nothing_right(check, tmp_path):
    contract = EnforcerContract()
    contract.enforcer_class = type("Here", (Careless,), {"folder": str(tmp_path)})
    with pytest.raises((AssertionError, LookupError, OSError)):
        getattr(contract, check)()
