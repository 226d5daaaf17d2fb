"""What the operating system limits for each process by itself: setrlimit(2), set from outside with prlimit(2).

Only open files: RLIMIT_AS is no limit on memory (it breaks programs that reserve address space and never use it), and
RLIMIT_NPROC counts all processes of the user, not those of a kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.usage import scan


class RlimitEnforcer(Enforcer):
    """RLIMIT_NOFILE of a kernel's processes: whoever opens one more gets OSError (EMFILE)."""

    name = "rlimit"
    holds = frozenset({"open_files"})

    def prepare(self) -> dict[str, str]:
        if sys.platform != "linux":
            return {"open_files": f"prlimit(2) is Linux's (this is {sys.platform})"}
        return {}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        if "open_files" not in limits or not allowance.open_files:
            return
        import resource

        for pid in [one.pid for one in scan().tree(subject.pid)] or [subject.pid]:
            try:
                _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                wanted = allowance.open_files
                # Without privilege what was lowered can't be raised: that is the user's to lose, not the server's.
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, wanted if os.geteuid() == 0 else most))
            except ProcessLookupError:
                continue
            except (OSError, ValueError) as error:
                needed = f"a limit of at least {allowance.open_files} open files for the server (ulimit -Hn)"
                raise NotEnforceable(
                    f"open_files = {allowance.open_files} can't be enforced: {error}", limit="open_files", needed=needed
                ) from error

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        found = {}
        for subject in subjects:
            try:
                found[subject.kernel_id] = Reading({"open_files": len(os.listdir(f"/proc/{subject.pid}/fd"))})
            except OSError:
                continue
        return found
