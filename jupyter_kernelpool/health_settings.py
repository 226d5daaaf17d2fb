"""The traits that say how kernels are looked after: how often they are asked, and what follows silence or death."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, CaselessStrEnum, Float, Integer
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool import health
from jupyter_kernelpool import recovery as recoveries
from jupyter_kernelpool.breaker import Breaker


class KernelHealth(LoggingConfigurable):
    """How kernels are looked after. As it comes, silent kernels are reported and nothing is done to them, and dead ones
    are restarted as Jupyter does."""

    interval = Float(
        30.0,
        min=0,
        config=True,
        help="""Seconds between two nudges of a kernel: questions on its control channel and its heartbeat, which run no
        code in it. 0 asks never. The pause grows while a kernel does not answer. Warm kernels are asked as often, over
        their private sockets.""",
    )
    timeout = Float(
        10.0,
        min=0.05,
        config=True,
        help="Seconds in which a kernel has to answer a nudge; after that it is unresponsive.",
    )
    retries = Integer(
        3,
        min=0,
        max=20,
        config=True,
        help="How often a kernel is asked again within timeout, at growing intervals, before its silence counts.",
    )
    backoff = Float(
        2.0,
        min=1,
        max=100,
        config=True,
        help="""What pauses grow by: between two questions, between nudges of a kernel that does not answer (to 10
        minutes at most), and between restarts of one that ends again and again (to a minute at most).""",
    )
    start_timeout = Float(
        60.0,
        min=0,
        config=True,
        help="Seconds that a kernel may take to answer for the first time after its process began.",
    )
    on_unresponsive = CaselessStrEnum(
        list(health.ON_UNRESPONSIVE),
        default_value="report",
        config=True,
        help="""What happens to a kernel that does not answer. "report": an event is published, and its state says so.
        "interrupt": it is interrupted, too, and one that was stopped by a signal is continued. "restart": as
        "interrupt", and if it does not answer within grace seconds, its process is killed, and another one takes its
        place; where recovery is "never" it is only interrupted. A recipe's setting `on_unresponsive` says otherwise for
        one kernelspec.""",
    )
    grace = Float(
        3.0,
        min=0.05,
        config=True,
        help="Seconds in which a kernel has to answer after it was interrupted, before it is restarted.",
    )
    recovery = CaselessStrEnum(
        [each.value for each in recoveries.Recovery],
        default_value=recoveries.Recovery.ALWAYS.value,
        config=True,
        help="""Whether a kernel whose process ended is restarted: "always", as Jupyter does, "on_failure" (not if it
        ended with exit code 0), or "never". One that is not stays dead, with the reason, until its user restarts it. A
        recipe's setting `recovery` says otherwise for one kernelspec.""",
    )
    restore = Bool(
        False,
        config=True,
        help="""Whether a kernel whose process ended, or was killed since it did not answer, gets its last checkpoint
        back instead of a fresh process, where it has one. A recipe's setting `restore` says otherwise for one
        kernelspec.""",
    )
    restart_limit = Integer(
        0,
        min=0,
        config=True,
        help="""Restarts of a kernel within restart_window, at most, and of one none of whose processes answers for
        that long, however late each ended; then it stays dead, with the reason, until its user restarts it. 0 leaves it
        to Jupyter's KernelRestarter.restart_limit, after which Jupyter forgets a kernel that it restarted itself,
        quickly.""",
    )
    restart_window = Float(
        60.0,
        min=1,
        config=True,
        help="Seconds within which ends of a kernel's process are counted together.",
    )
    restart_pause = Float(
        1.0,
        min=0,
        config=True,
        help="""Seconds before the second restart of a kernel within restart_window; each later one waits backoff times
        as long. The first one waits for nothing.""",
    )
    breaker_failures = Integer(
        3,
        min=0,
        config=True,
        help="""Starts of a kernelspec's kernels that fail one after the other (the process ends before it answers, or
        can't be started) until further ones are refused at once, with 503 and Retry-After. 0 refuses none.""",
    )
    breaker_pause = Float(
        10.0,
        min=0.1,
        config=True,
        help="""Seconds after which one start may try again; twice as many after each that fails, 5 minutes at most.""",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.trait_names(config=True):
            getattr(self, name)  # a wrong value stops the server here, not at the first kernel

    @property
    def nudges(self) -> health.Policy:
        """When kernels are asked."""
        return health.Policy(self.interval, self.backoff, self.start_timeout)

    @property
    def waits(self) -> list[float]:
        """Seconds after each question of a nudge."""
        return health.split(self.timeout, self.retries, self.backoff)

    def recovery_of(self, own: str | None) -> recoveries.Policy:
        """What follows the end of a process; *own* is what the kernel's recipe says about it."""
        return recoveries.Policy(
            recoveries.Recovery(own or self.recovery),
            limit=self.restart_limit or None,
            fruitless=self.restart_limit or None,
            window=self.restart_window,
            first=self.restart_pause,
            factor=self.backoff,
        )

    def silence_of(self, own: str | None, recovery: str | None) -> str:
        """What happens to a kernel that does not answer; *own* and *recovery* are what its recipe says.

        One that is not to be restarted when it ends is not ended here: it might answer again, and would stay dead.
        """
        wanted = own or self.on_unresponsive
        is_never = (recovery or self.recovery) == recoveries.Recovery.NEVER
        return "interrupt" if wanted == "restart" and is_never else wanted

    def restores(self, own: bool | None) -> bool:
        """Whether a process that ended is followed by its last checkpoint; *own* is what the kernel's recipe says."""
        return self.restore if own is None else own

    def breaker(self) -> Breaker:
        """One for the starts of one kernelspec."""
        return Breaker(self.breaker_failures, self.breaker_pause, self.start_timeout)
