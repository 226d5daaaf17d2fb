"""What the operating system limits for each process by itself: setrlimit(2), set from outside with prlimit(2).

Only open files: RLIMIT_AS is no limit on memory (it breaks programs that reserve address space and never use it), and
RLIMIT_NPROC counts all processes of the user, not those of a kernel.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.escalation import FULL
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.usage import count_descriptors, scan

RESERVE = 32  # files beyond the limit for a kernel that reached it: else no client could connect any more, to see why
CAP_SYS_RESOURCE = 24  # capabilities(7)
CALM = 0.9  # of the limit: below it the reserve is taken back


class RlimitEnforcer(Enforcer):
    """RLIMIT_NOFILE of a kernel's processes: whoever opens one more gets OSError (EMFILE)."""

    name = "rlimit"
    holds = frozenset({"open_files"})

    def __init__(self, headroom: float) -> None:
        super().__init__(headroom)
        self._allowed: dict[str, tuple[int, int]] = {}  # by kernel id: its process, and the files it may have open
        self._reserve_given: set[str] = set()

    def prepare(self) -> dict[str, str]:
        if sys.platform != "linux":
            return {"open_files": f"prlimit(2) is Linux's (this is {sys.platform})"}
        return {}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        limited = self._allowed.get(subject.kernel_id, (0, 0))[0] == subject.pid
        self.let_go(subject.kernel_id)
        if "open_files" not in limits or not (allowance.open_files or limited):
            return
        wanted = allowance.open_files or _own_limit()
        for pid in [one.pid for one in scan().tree(subject.pid)] or [subject.pid]:
            try:
                _set_limit(pid, wanted)
            except ProcessLookupError:
                continue
            except (OSError, ValueError) as error:
                needed = f"a limit of at least {allowance.open_files} open files for the server (ulimit -Hn)"
                raise NotEnforceable(
                    f"open_files = {allowance.open_files} can't be enforced: {error}", limit="open_files", needed=needed
                ) from error
        if allowance.open_files:
            self._allowed[subject.kernel_id] = (subject.pid, allowance.open_files)

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        found = {}
        for subject in subjects:
            pid, allowed = self._allowed.get(subject.kernel_id, (0, 0))
            count = count_descriptors([pid]) if pid == subject.pid else 0
            if count:
                self._keep_reserve(subject.kernel_id, pid, allowed, count)
                found[subject.kernel_id] = Reading({"open_files": count})
        return found

    def let_go(self, kernel_id: str) -> None:
        self._allowed.pop(kernel_id, None)
        self._reserve_given.discard(kernel_id)

    def _keep_reserve(self, kernel_id: str, pid: int, allowed: int, count: int) -> None:
        """Let a kernel that has no file left accept a few clients; what leaks on has no more than that, either."""
        given = kernel_id in self._reserve_given
        if (given and count >= CALM * allowed) or (not given and count < FULL * allowed):
            return
        try:
            _set_limit(pid, allowed if given else allowed + RESERVE)
        except (OSError, ValueError):  # it has ended, or the hard limit has no room for that
            return
        (self._reserve_given.discard if given else self._reserve_given.add)(kernel_id)


def _own_limit() -> int:
    """The server's, which kernels have where nothing else is said."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _set_limit(pid: int, wanted: int) -> None:
    import resource

    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Without privilege what was lowered can't be raised: that is the user's to lose, not the server's.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, wanted if _may_raise() else most))


@functools.cache
def _may_raise() -> bool:
    """Whether the server may raise hard limits; root in a container often may not."""
    with open("/proc/self/status") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
