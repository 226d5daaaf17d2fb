"""One chaos run: a server, its kernels and clients, the faults, the samples, and the verdict."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.clients import Person
from benchmarks.chaos.faults import Faults, describe
from benchmarks.chaos.house import House
from benchmarks.chaos.journal import Journal
from benchmarks.chaos.judge import Slope, Verdict, count_outcomes, judge_executions, judge_rest, judge_slopes
from benchmarks.chaos.samples import describe_processes, find_files, find_processes, sample
from benchmarks.machine import describe_machine
from benchmarks.servers import Server, start_server

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS = (
    # Stock gives up a kernel that ends six times in a row, quickly: that is not the point here.
    "--KernelRestarter.restart_limit=1000",
    # jupyter_client remembers the last 65,536 signatures for each kernel: memory that grows for hours, as with stock.
    "--Session.digest_history_size=1000",
    "--KernelHealth.on_unresponsive=restart",
    "--KernelHealth.interval=10",
    "--KernelLimits.memory=400M",
    "--KernelLimits.output=1M",
)
SAMPLE_EVERY = 10.0
SAY_EVERY = 30.0
REST_WITHIN = 90.0
GONE_WITHIN = 10.0
MOST_TRACEBACKS = 10


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    minutes: float
    kernels: int
    clients: int
    every: float
    patience: float
    seed: int
    options: tuple[str, ...] = ()


class Chaos:
    """A run in progress."""

    def __init__(self, plan: Plan, server: Server, ran: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._server = server
        self._ran = ran
        self._say = say
        self.journal = Journal()
        choice = random.Random(plan.seed)
        self._house = House(server.client, self.journal, plan.kernels, choice)
        self._people = [
            Person(number, self._house, self.journal, ran, choice.getrandbits(32), plan.patience)
            for number in range(plan.clients)
        ]
        self._faults = Faults(
            self._house, self._people, self.journal, server.runtime, choice.getrandbits(32), plan.every
        )
        self.samples: list[dict[str, float]] = []
        self.verdict = Verdict()
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}

    async def run(self) -> None:
        """All of it, until the server is at rest again."""
        await self._server.client.wait_until_warm()
        self.before = await self._look()
        self._say(f"{self._plan.kernels} kernels are started")
        await self._house.fill()
        seconds = self._plan.minutes * 60
        until = self.journal.now + seconds
        self._say(f"{self._plan.clients} clients work for {self._plan.minutes:g} minutes; seed {self._plan.seed}")
        others = [asyncio.create_task(one) for one in (self._faults.strike(), self._house.keep(), self._watch())]
        people = [asyncio.create_task(person.work(until)) for person in self._people]
        try:
            # Every person ends by itself: it gives up each cell after its patience. More is a defect of the harness.
            done, pending = await asyncio.wait(people, timeout=seconds + 10 * self._plan.patience)
        finally:
            for task in (*others, *people):
                task.cancel()
            ended = await asyncio.gather(*others, *people, return_exceptions=True)
        self.verdict.failures += [f"{len(pending)} clients did not end"] if pending else []
        self.verdict.failures += [f"the harness: {error!r}" for error in ended if isinstance(error, Exception)]
        self._say(f"{len(done)} clients have ended; the kernels are deleted")
        await self._come_to_rest()

    def judge(self) -> list[Slope]:
        """Fill in the verdict."""
        ran = Counter(self._ran.read_text(encoding="ascii").split())
        judge_executions(self.journal.executions, ran, self.journal.faults, self.verdict)
        judge_rest(self.before, self.after, self.verdict)
        self.verdict.failures += self.journal.failures
        start = self.samples[0]["at"] if self.samples else 0.0
        moved = [{**one, "at": one["at"] - start} for one in self.samples]
        return judge_slopes(moved, moved[-1]["at"] if moved else 0.0, self.verdict)

    async def _look(self) -> dict[str, float]:
        status, pool = await self._house.call("look", "GET", "/kernelpool/v1/pool")
        supervisor = pool["capabilities"]["supervisor"]["pid"] if status == 200 else None
        return await asyncio.to_thread(sample, self._server.pid, supervisor, self._server.runtime)

    async def _watch(self) -> None:
        said = 0.0
        while True:
            at = self.journal.now
            # Listed beside the figures, and not judged: the house keeps their number.
            kernels = await self._house.call("list", "GET", "/api/kernels")
            found = {"at": round(at, 1), **await self._look()}
            if kernels[0] == 200:
                found["kernels"] = len(kernels[1])
            self.samples.append(found)
            if at - said >= SAY_EVERY:
                said = at
                outcomes = count_outcomes(one for one in self.journal.executions if one.outcome)
                self._say(
                    f"{at:6.0f} s: {sum(outcomes.values())} executions, {outcomes['lost']} lost, "
                    f"{len(self.journal.faults)} faults, {found.get('kernels', 0):.0f} kernels, "
                    f"{found['processes']:.0f} processes, {found.get('server_fds', 0):.0f} fds, "
                    f"{found.get('server_pss', 0):.0f} MiB, {len(self.journal.failures)} failures"
                )
            await asyncio.sleep(max(0.0, SAMPLE_EVERY - (self.journal.now - at)))

    async def _come_to_rest(self) -> None:
        """Delete all kernels; afterwards every process has to be one that the pool says it has."""
        deadline = time.monotonic() + REST_WITHIN
        unknown = -1.0
        while time.monotonic() < deadline:
            _, models = await self._house.call("list", "GET", "/api/kernels")
            for model in models or []:
                await self._house.call("delete", "DELETE", f"/api/kernels/{model['id']}")
            _, pool = await self._house.call("look", "GET", "/kernelpool/v1/pool")
            self.after = await self._look()
            rows = (pool or {}).get("recipes", [])
            known = 1 + sum(row["warm"] + row["starting"] + (row["template"] is not None) for row in rows)
            unknown = self.after["processes"] - known
            if not models and unknown == 0 and all(row["warm"] >= row["target"] for row in rows):
                return
            await asyncio.sleep(1)
        if unknown:
            # For whoever looks into it: the server is about to stop, and all of it with it.
            self.verdict.left.append(f"{unknown:g} processes more than the pool knows of, with no kernel left")
            self.verdict.left += await asyncio.to_thread(describe_processes, self._server.runtime)
        self.journal.odd.append(f"the pool did not come to rest within {REST_WITHIN:g} s")


async def run_chaos(plan: Plan, out: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Slope], Verdict]:
    """Carry out *plan*; the run as data, its slopes, its verdict. The server's log is put into the folder *out*."""
    left: list[str] = []
    tracebacks: list[str] = []

    def look_behind(home: Path) -> None:
        deadline = time.monotonic() + GONE_WITHIN
        while (processes := find_processes(home / "runtime")) and time.monotonic() < deadline:
            time.sleep(0.2)
        left.extend(f"process {pid} outlived the server" for pid in processes)
        left.extend(f"file {path.name} outlived the server" for path in find_files(home / "runtime"))
        shutil.copyfile(home / "server.log", out / "server.log")
        tracebacks.extend(find_tracebacks((home / "server.log").read_text(errors="replace")))

    with tempfile.TemporaryDirectory(prefix="kp-chaos-") as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        ran = Path(folder) / "ran"
        ran.touch()
        async with start_server(
            "ours", options=(*OPTIONS, *plan.options), variables={"TMPDIR": str(temporary)}, on_stopped=look_behind
        ) as server:
            say(f"the server is up, pid {server.pid}")
            chaos = Chaos(plan, server, ran, say)
            when = datetime.now(UTC).isoformat(timespec="seconds")
            await chaos.run()
        left.extend(f"file {path.name} outlived the server" for path in temporary.iterdir())
        chaos.verdict.left += left
        slopes = chaos.judge()
    journal = chaos.journal
    run = {
        "when": when,
        "machine": describe_machine(),
        **dataclasses.asdict(plan),
        "options": [*OPTIONS, *plan.options],  # all that the server had, not only what was asked for
        "seconds": chaos.samples[-1]["at"] - chaos.samples[0]["at"] if chaos.samples else 0.0,
        "outcomes": dict(count_outcomes(journal.executions)),
        "faults": describe(journal.faults),
        "counts": dict(journal.counts),
        "odd": [*journal.odd, *tracebacks],
        "before": chaos.before,
        "after": chaos.after,
        "slopes": [dataclasses.asdict(slope) for slope in slopes],
        "verdict": dataclasses.asdict(chaos.verdict),
        "samples": chaos.samples,
        "all_faults": [dataclasses.asdict(fault) for fault in journal.faults],
    }
    return run, slopes, chaos.verdict


def find_tracebacks(log: str) -> list[str]:
    """What ended each traceback in the server's log, with how often, the most frequent first."""
    ends: Counter[str] = Counter()
    lines = iter(log.splitlines())
    for line in lines:
        if line.lstrip().startswith("Traceback"):
            deeper = " " * (len(line) - len(line.lstrip()) + 1)
            with suppress(StopIteration):
                while (line := next(lines)).startswith(deeper) or not line.strip():
                    pass
                ends[line.strip()[:200]] += 1
    return [f"traceback in the server's log, {count} times: {end}" for end, count in ends.most_common(MOST_TRACEBACKS)]
