"""Ends kernels that nobody uses, as `culling` says; beside jupyter_server's culler, whose traits keep their meaning.

Its clock is another one: it looks at what runs in a kernel, not at what is said of it, so what a front end asks
for by itself (completions, kernel_info, comm_info) keeps no kernel alive, and the time begins when a cell has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from traitlets import Bool, CaselessStrEnum, Float, Integer, TraitError, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool.allowance import read_size
from jupyter_kernelpool.culling import (
    SHORT,
    Action,
    Cull,
    Forgive,
    Host,
    KernelView,
    Policy,
    Recycle,
    Renew,
    Warn,
    due,
    plan,
)
from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.ledger import Execution, Ledger
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.process import taking_no_cells
from jupyter_kernelpool.stumbles import Stumbles

AT_REST_TIMEOUT = 0.5

log = logging.getLogger("jupyter_kernelpool")


class KernelCuller(LoggingConfigurable):
    """When kernels are ended that are idle, busy or alive for too long. Nothing is, unless one of these is set."""

    idle_timeout = Float(
        0.0,
        min=0,
        config=True,
        help="""Seconds after which a kernel in which nothing runs is ended. They begin when its last cell has ended.
        0: never.""",
    )
    busy_timeout = Float(
        0.0,
        min=0,
        config=True,
        help="Seconds after which a kernel is ended in which one cell has been running all the time. 0: never.",
    )
    max_life = Float(
        0.0,
        min=0,
        config=True,
        help="Seconds after which a kernel is ended whatever it does; a restart begins them anew. 0: never.",
    )
    connected = Bool(
        False,
        config=True,
        help="""Whether idle kernels are ended to which a client is connected: an open notebook is one. busy_timeout
        and max_life do not ask for clients.""",
    )
    warn_before = Float(
        60.0,
        min=0,
        config=True,
        help="""Seconds beforehand, at least, that an event `culling` tells of it, and the kernel's model says when; a
        timeout that is shorter counts instead. PATCH /kernels/{kernel} with keep_alive puts it off. 0: nothing tells
        of it.""",
    )
    on_cull = CaselessStrEnum(
        ["kill"],
        default_value="kill",
        config=True,
        help='What happens to the kernel: "kill" shuts it down.',
    )
    reserve_memory: Any = Union(
        [Integer(min=0), Unicode()],
        default_value=0,
        config=True,
        help="""Memory to leave free on the machine: bytes, or text such as "600M". Below it warm kernels go, and
        then the idle kernel that was not used for longest, one at a time: an event `culling` tells of it at one look,
        and at the next it goes. 0: none goes for that.""",
    )
    interval = Float(5.0, min=0.1, config=True, help="Seconds between two looks at the kernels.")

    @validate("reserve_memory")
    def _valid_reserve(self, proposal: Any) -> Any:
        try:
            return read_size(proposal["value"])
        except NotValid as error:
            raise TraitError(f"KernelCuller.reserve_memory: {error}") from error

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.trait_names(config=True):
            getattr(self, name)  # a wrong value stops the server here, not at the first kernel

    @property
    def policy(self) -> Policy:
        """What holds for kernels of which nothing else is said."""
        return Policy(self.idle_timeout, self.busy_timeout, self.max_life, self.connected, self.warn_before)


NO_WISH = Recycle()


@dataclass
class Life:
    """What is known of one kernel's use: its process's age and cells, what it was told, what its owner asked for."""

    born: float
    told: float | None = None
    pressed: float | None = None
    kept_until: float = 0.0
    uses: int = 0
    recycle: Recycle = NO_WISH


class Culler:
    """Looks at the kernels of *manager*, the server's kernel manager, and ends those that `culling` names."""

    def __init__(self, manager: Any, settings: KernelCuller) -> None:
        self.settings = settings
        self._manager = manager
        self._lives: dict[str, Life] = {}
        self._stumbles = Stumbles(log, "Culling")
        manager.edge.on_ledger.append(self._follow)

    # -- what is known of kernels -------------------------------------------------------------------

    def began(self, kernel_id: str) -> None:
        """The kernel has a new process; it is told of that anew."""
        life = self._lives.setdefault(kernel_id, Life(0.0))
        life.born, life.told, life.pressed, life.uses = time.monotonic(), None, None, 0

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone."""
        self._lives.pop(kernel_id, None)
        self._stumbles.forget(f"kernel {kernel_id}")

    def keep(self, kernel_id: str, seconds: float) -> None:
        """Leave the kernel alone for *seconds* from now on."""
        self._life(kernel_id).kept_until = time.monotonic() + seconds

    def recycle(self, kernel_id: str, wish: Recycle) -> None:
        """Restart the kernel when it is idle and *wish* says so; an empty one takes that back."""
        self._life(kernel_id).recycle = wish

    def recycle_of(self, kernel_id: str) -> Recycle:
        """What its owner asked for."""
        return self._life(kernel_id).recycle

    def policy_for(self, kernel_name: str) -> Policy:
        """What holds for kernels of that kernelspec."""
        own = dict(self._manager.pool.settings_for(kernel_name).cull)
        return replace(self.settings.policy, **own)

    def ends_at(self, kernel_id: str) -> tuple[float | None, str]:
        """When the kernel will be ended if nothing changes, in seconds since the epoch, and why; None if never."""
        if not self._may_end(kernel_id):
            return None, ""
        now, pressed = time.monotonic(), self._life(kernel_id).pressed
        at, why = due(self._view(kernel_id), now)
        if pressed is not None:
            at, why = min((at, why), (pressed + self.settings.interval, SHORT))
        return (time.time() + at - now, why) if why else (None, "")

    # -- the round ----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether any kernel may have to be ended or renewed."""
        return bool(self._lives) and (
            self.settings.policy.ends_any
            or bool(self.settings.reserve_memory)
            or any(life.recycle != NO_WISH for life in self._lives.values())
            or any(settings.cull for settings in self._manager.pool.all_settings())
        )

    async def go(self) -> None:
        """Look at all kernels once; called by the keeper every `KernelCuller.interval` seconds."""
        memory = await self._memory()
        for planned in self._plan(self._ids(), memory):
            with self._stumbles.over(f"{type(planned).__name__} of kernel {planned.id}"):
                # Others were seen to before, for seconds maybe: it may have ended, be in use, or be kept.
                action = self._again(planned, memory)
                if action is not None:
                    await self._carry_out(action)

    def _plan(self, kernel_ids: Iterable[str], memory: Mapping[str, int]) -> list[Action]:
        views = []
        for kernel_id in kernel_ids:
            with self._stumbles.over(f"kernel {kernel_id}"):
                if self._may_end(kernel_id):
                    views.append(self._view(kernel_id, memory.get(kernel_id, 0)))
        keeper = self._manager.keeper
        host = Host(
            keeper.host.available_memory,
            int(self.settings.reserve_memory),
            keeper.regains_memory,
            self.settings.interval,
        )
        return plan(views, host, time.monotonic())

    def _again(self, planned: Action, memory: Mapping[str, int]) -> Action | None:
        """What was *planned*, as it is now; None if it is not to be done any more."""
        if planned.id not in self._manager:
            return None
        action = next((one for one in self._plan([planned.id], memory) if _is_alike(one, planned)), None)
        if isinstance(action, Cull) and action.cause in ("idle", "memory"):
            is_asked = bool(self._manager.edge.ledger(planned.id).expected)  # it will say in a moment that it runs
            return None if is_asked else action
        return action

    async def _carry_out(self, action: Action) -> None:
        events = self._manager.events
        match action:
            case Warn(id=kernel_id, why=why, at=at, pressed=pressed):
                if pressed:
                    self._life(kernel_id).pressed = time.monotonic()
                else:
                    self._life(kernel_id).told = at
                left = round(max(0.0, at - time.monotonic()), 3)
                events.emit("culling", kernel_id, now=time.time(), reason=why, seconds=left)
            case Forgive(id=kernel_id, pressed=True):
                self._life(kernel_id).pressed = None
            case Forgive(id=kernel_id):
                self._life(kernel_id).told = None
            case Cull(id=kernel_id, why=why, cause=cause):
                log.warning("Kernel %s is culled: %s", kernel_id, why)
                events.emit("culled", kernel_id, now=time.time(), reason=why, cause=cause)
                self._manager.get_kernel(kernel_id).reason = f"The kernel was culled: {why}."
                await self._manager.shutdown_kernel(kernel_id)
                if cause == "memory":
                    self._manager.keeper.gave_up_kernel()
            case Renew(id=kernel_id, why=why):
                await self._renew(kernel_id, why)

    async def _renew(self, kernel_id: str, why: str) -> None:
        """Restart the kernel, unless it is dead, or a cell was asked for or has begun meanwhile.

        What comes from now on is for the next process.
        """
        kernel = self._manager.get_kernel(kernel_id)
        process = kernel.pooled.claimed if getattr(kernel, "pooled", None) is not None else None
        with taking_no_cells(process):
            at_rest = await (process.check(AT_REST_TIMEOUT) if process is not None else kernel.is_alive())
            is_asked = bool(self._manager.edge.ledger(kernel_id).expected)
            if at_rest and not is_asked and not self._view(kernel_id).busy:
                log.info("Kernel %s is restarted: %s", kernel_id, why)
                kernel.restarts_for = "renewed", why
                await self._manager.restart_kernel(kernel_id)

    # -- parts --------------------------------------------------------------------------------------

    def _ids(self) -> list[str]:
        return [kernel_id for kernel_id in self._manager.list_kernel_ids() if kernel_id in self._lives]

    def _may_end(self, kernel_id: str) -> bool:
        """Whether it is this server's, and not one that it only watches."""
        return bool(getattr(self._manager.get_kernel(kernel_id), "owns_kernel", True))

    def _life(self, kernel_id: str) -> Life:
        return self._lives.setdefault(kernel_id, Life(time.monotonic()))

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        def count(_: Execution) -> None:
            self._life(kernel_id).uses += 1

        ledger.on_show.append(count)

    def _view(self, kernel_id: str, memory: int = 0) -> KernelView:
        kernel, life = self._manager.get_kernel(kernel_id), self._life(kernel_id)
        ledger = self._manager.edge.ledger(kernel_id)
        running = min((one.began for one in ledger.executions.values() if one.shown or one.presumed), default=None)
        record = kernel.pooled.record if getattr(kernel, "pooled", None) is not None else None
        return KernelView(
            id=kernel_id,
            policy=self.policy_for(kernel.kernel_name),
            born=life.born,
            since=running if running is not None else max(life.born, ledger.used_at),
            busy=running is not None,
            connections=self._manager._kernel_connections.get(kernel_id, 0),
            kept_until=life.kept_until,
            held=record is not None and record.state not in (State.ACTIVE, State.UNRESPONSIVE, State.DEAD),
            told=life.told,
            pressed=life.pressed,
            memory=memory,
            uses=life.uses,
            recycle=life.recycle,
        )

    async def _memory(self) -> Mapping[str, int]:
        """Private memory of the kernels whose owners asked for it to be looked at, in bytes."""
        wanted = [kernel_id for kernel_id, life in self._lives.items() if life.recycle.memory]
        memory: dict[str, int] = {}
        with self._stumbles.over("what kernels use"):
            memory = {key: usage.reading.private for key, usage in (await self._manager.meter.look(wanted)).items()}
        return memory


def _is_alike(one: Action, other: Action) -> bool:
    """Whether both do the same; want of memory is a matter of its own."""
    return type(one) is type(other) and getattr(one, "pressed", False) == getattr(other, "pressed", False)
