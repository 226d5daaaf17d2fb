"""Control groups of version 1, which older systems have."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jupyter_kernelpool.limits.hierarchy import NEEDS, PERIOD, Hierarchy, Tally, quota_of, write
from jupyter_kernelpool.limits.places import readable


class Legacy(Hierarchy):
    """Version 1: a folder for each controller, each in a tree of its own."""

    version = "v1"

    def __init__(self, name: str, own: Mapping[str, str]) -> None:
        """*own* are the server's cgroups, by controller."""
        bases, why = {}, {}
        for controller in dict.fromkeys(each for needs in NEEDS.values() for each in needs):
            folder = own.get(controller)
            if folder is None:
                why[controller] = f"no cgroup controller {controller} is mounted"
            elif not os.access(folder, os.W_OK):
                why[controller] = f"the server may not write to {folder}; with cgroup v1 only root's may"
            else:
                bases[controller] = folder
        missing = {}
        for limit, needs in NEEDS.items():
            reasons = [why[each] for each in needs if each in why]
            if reasons:
                missing[limit] = reasons[0]
        super().__init__(name, bases, bases, missing)

    def limit_memory(self, group: str, allowed: int, hard: int) -> None:
        memory = f"{self._path('memory', group)}/memory.limit_in_bytes"
        both = f"{self._path('memory', group)}/memory.memsw.limit_in_bytes"  # not there without swap accounting
        value = hard or -1
        if not os.path.exists(both):
            write(memory, value)
            return
        try:
            write(memory, value)
            write(both, value)
        except OSError:  # memory may not be above both together: when more is allowed, the latter goes first
            write(both, value)
            write(memory, value)

    def limit_cpu(self, group: str, cores: float) -> None:
        self._write("cpu", group, "cpu.cfs_period_us", PERIOD)
        quota = quota_of(min(cores, self._most_cores(group))) if cores else -1
        self._write("cpu", group, "cpu.cfs_quota_us", quota)

    def tally(self, group: str, last: Tally | None = None) -> Tally | None:
        spent = self._number("cpuacct", group, "cpuacct.usage") / 1e9
        if last is not None and 0 < spent == last.cpu:
            return last
        cpu = self._table("cpu", group, "cpu.stat")
        if not cpu and not self.has(group):
            return None
        return Tally(
            charged=self._number("memory", group, "memory.usage_in_bytes"),
            cpu=spent,
            periods=cpu.get("nr_periods", 0),
            throttled=cpu.get("nr_throttled", 0),
            processes=self._number("pids", group, "pids.current"),
            refused=self.refused(group),
            killed=self.killed(group),
        )

    def killed(self, group: str) -> int:
        return self._table("memory", group, "memory.oom_control").get("oom_kill", 0)

    def short(self, group: str) -> int | None:
        return None  # memory.failcnt stays 0 on newer kernels (seen with 6.18)

    def forget_highest(self, group: str) -> None:
        if "memory" in self.tops:
            self._write("memory", group, "memory.max_usage_in_bytes", 0)

    def droppable(self, group: str) -> int:
        memory = self._table("memory", group, "memory.stat")
        return memory.get("total_cache", 0) - memory.get("total_shmem", 0)

    def highest(self, group: str) -> int:
        return self._number("memory", group, "memory.max_usage_in_bytes")

    def _most_cores(self, group: str) -> float:
        """What the groups above allow: version 1 takes no more than that."""
        most = float("inf")
        folder = self._path("cpu", group)
        while os.path.exists(f"{(folder := os.path.dirname(folder))}/cpu.cfs_period_us"):
            quota, period = (readable(f"{folder}/cpu.cfs_{each}_us").strip() for each in ("quota", "period"))
            if quota.isdigit() and period.isdigit():
                most = min(most, int(quota) / int(period))
        return most
