"""The traits that say what kernels may use, and what happens when they use more."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, CaselessStrEnum, Float, Integer, List, TraitError, Type, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool.allowance import LIMITS, Allowance, read_limit
from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.escalation import Policy
from jupyter_kernelpool.limits.base import Enforcer
from jupyter_kernelpool.limits.cgroup import CgroupEnforcer
from jupyter_kernelpool.limits.rlimit import RlimitEnforcer
from jupyter_kernelpool.limits.watchdog import WatchdogEnforcer

SIZES = 'Bytes, or text such as "600M" or "1.5G" (powers of 1024).'
SUMS = {"total_memory": "memory", "total_cpu": "cpu", "total_processes": "processes"}


def _size(text: str, default: int = 0) -> Any:
    return Union([Integer(min=0), Unicode()], default_value=default, config=True, help=f"{text} {SIZES}")


class KernelLimits(LoggingConfigurable):
    """What each kernel may use: guard-rails that end a run-away kernel and say why, not fences against its owner."""

    memory = _size(
        """Memory that the processes of a kernel may have for themselves; what they share with a template or the kernel
        they were forked from is not counted. 0 sets no limit."""
    )
    cpu = Float(
        0.0,
        min=0,
        config=True,
        help="""Cores that the processes of a kernel may use together, on average: 0.8 is 80 % of one. 0 sets no
        limit. They are slowed down, not ended.""",
    )
    execution_timeout = Float(
        0.0,
        min=0,
        config=True,
        help="""Seconds that a cell may run, whoever sent it; waiting for input does not count. Then it is interrupted,
        and where that does not help the kernel is restarted. 0 sets no limit.""",
    )
    idle_output_timeout = Float(
        0.0,
        min=0,
        config=True,
        help="""Seconds in which a cell that runs may put out nothing; then it is interrupted as with execution_timeout.
        Waiting for input does not count. 0 sets no limit.""",
    )
    output = _size(
        """Output that a cell may produce; the rest is left out and marked, and a cell that goes on is stopped. 0 sets
        no limit."""
    )
    processes = Integer(
        0,
        min=0,
        config=True,
        help="""Processes that a kernel may have, each thread counted as one, as the operating system does (a kernel has
        about 15 by itself). 0 sets no limit.""",
    )
    open_files = Integer(
        0,
        min=0,
        config=True,
        help="Files that each process of a kernel may have open, sockets counted. 0 leaves what the server has.",
    )
    total_memory = _size(
        "Memory that all kernels may have together, as for memory; the one that uses most is ended. 0 sets no limit."
    )
    total_cpu = Float(0.0, min=0, config=True, help="Cores that all kernels may use together. 0 sets no limit.")
    total_processes = Integer(
        0, min=0, config=True, help="Processes, with threads, that all kernels may have together. 0 sets no limit."
    )
    warn_at = Float(
        0.8,
        min=0.1,
        max=1.0,
        config=True,
        help="""Share of a limit (0.8 is 80 %) at which the user is told in the notebook, and an event is published,
        once for each crossing.""",
    )
    on_breach = CaselessStrEnum(
        ["interrupt", "kill", "restart", "restore"],
        default_value="interrupt",
        config=True,
        help="""What happens to a kernel that uses more memory or processes than it may. "interrupt": what runs is
        interrupted, and the kernel is ended if it does not use less within grace seconds; "kill": it is ended at once.
        It then stays dead, with the reason, until its user restarts it. "restart": as "interrupt", then a fresh process
        takes its place. "restore": as "interrupt", then its last checkpoint takes its place, or a fresh process where
        there is none.""",
    )
    grace = Float(
        3.0,
        min=0,
        config=True,
        help="Seconds that a kernel has after it was interrupted, to use less or to end its cell.",
    )
    headroom = Float(
        0.1,
        min=0,
        max=10,
        config=True,
        help="""Share above the limit on memory or processes at which a kernel is ended at once, without time to stop by
        itself: 0.1 is 10 % more.""",
    )
    allow_loosen = Bool(
        False,
        config=True,
        help="Whether a kernel's limits may be loosened through REST; they can always be tightened.",
    )
    interval = Float(
        0.5,
        min=0.05,
        config=True,
        help="""Seconds between two looks at what kernels use, where memory, processor, processes or files are limited.
        Five times as often while one is near its limit, a quarter as often while nothing runs in any.""",
    )
    replay = _size(
        """Output that is kept for a client that is away, for each kernel; beyond it the oldest is left out, and that is
        marked. 0 keeps all, as jupyter_server does.""",
        64 << 20,
    )
    pending = _size(
        """Output that is kept for a client that is connected and has not read it yet; beyond it the client is
        disconnected (JupyterLab connects again). From an eighth of it on, more is left with the kernel until the client
        has read, if it reads at all. 0 keeps all, as jupyter_server does.""",
        64 << 20,
    )
    enforcers = List(
        Type(klass=Enforcer),
        default_value=[CgroupEnforcer, RlimitEnforcer, WatchdogEnforcer],
        config=True,
        help="""Ways to hold kernels to their limits, as dotted paths; each limit is given to the first that can hold it
        on this machine. /pool says which that is.""",
    )

    @validate("memory", "output", "total_memory", "replay", "pending")
    def _valid_size(self, proposal: Any) -> Any:
        try:
            return int(read_limit("memory", proposal["value"]))
        except NotValid as error:
            raise TraitError(f"KernelLimits.{proposal['trait'].name}: {error}") from error

    @validate("open_files")
    def _valid_open_files(self, proposal: Any) -> Any:
        try:
            return int(read_limit("open_files", proposal["value"]))
        except NotValid as error:
            raise TraitError(f"KernelLimits.{error}") from error

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        unknown = sorted(set(self.config.get("KernelLimits", {})) - set(self.trait_names(config=True)))
        if unknown:  # traitlets only warns: a limit whose name is misspelt would not hold
            raise TraitError(f"KernelLimits.{unknown[0]} is no setting; limits are: {', '.join(LIMITS)}")
        for name in self.trait_names(config=True):
            getattr(self, name)  # a wrong value stops the server here, not at the first kernel

    @property
    def allowance(self) -> Allowance:
        """What a kernel of which nothing else is said may use."""
        return Allowance(**{name: getattr(self, name) for name in LIMITS})

    @property
    def total(self) -> Allowance:
        """What all kernels may use together."""
        return Allowance(**{name: getattr(self, trait) for trait, name in SUMS.items()})

    @property
    def policy(self) -> Policy:
        """The steps, for `escalation`."""
        hard = 1.0 if self.on_breach == "kill" else 1.0 + self.headroom
        return Policy(self.warn_at, self.on_breach != "kill", self.grace, hard)
