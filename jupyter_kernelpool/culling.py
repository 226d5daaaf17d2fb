"""Which kernels to end because nobody uses them, they run too long, or memory is short; computed without I/O.

The culler takes the view, calls `plan`, and carries out the actions. All times are seconds on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

NEVER = float("inf")
SHORT = "memory is short, and it is idle for longest"


@dataclass(frozen=True)
class Policy:
    """For how long a kernel may be idle, busy, and live at all; 0 is for ever. *connected*: also with clients.

    *warn_before*: how long beforehand it is told, or from the beginning of a time that is shorter; 0: not at all.
    """

    idle_timeout: float = 0.0
    busy_timeout: float = 0.0
    max_life: float = 0.0
    connected: bool = False
    warn_before: float = 60.0

    @property
    def ends_any(self) -> bool:
        """Whether it ever ends a kernel."""
        return bool(self.idle_timeout or self.busy_timeout or self.max_life)


@dataclass(frozen=True)
class Recycle:
    """When its owner wants a kernel to begin anew, once it is idle: after *age* seconds or *uses* cells, above *memory*
    bytes."""

    age: float = 0.0
    memory: int = 0
    uses: int = 0


@dataclass(frozen=True)
class KernelView:
    """A kernel as it is now. *since*: since when it is *busy*, or idle; *kept_until*: what its owner asked for.

    *held*: something is being done to it. *told*: that it was told of its end, and for when. *pressed*: when it was
    told that it goes for want of memory. *memory* in bytes. *uses*: how many cells its present process has begun.
    """

    id: str
    policy: Policy
    born: float
    since: float
    busy: bool = False
    connections: int = 0
    kept_until: float = 0.0
    held: bool = False
    told: float | None = None
    pressed: float | None = None
    memory: int = 0
    uses: int = 0
    recycle: Recycle = Recycle()


@dataclass(frozen=True)
class Host:
    """What the machine has left, and below what kernels are ended for it (0: never); bytes.

    *regains*: kernels that nobody owns are being ended for it, or what they had is not counted yet. *pace*: seconds
    from one look to the next.
    """

    available: int
    reserve: int = 0
    regains: bool = False
    pace: float = 0.0


@dataclass(frozen=True)
class Warn:
    """Tell that the kernel will be ended at *at*; *pressed*: for want of memory, if it lasts."""

    id: str
    why: str
    at: float
    pressed: bool = False


@dataclass(frozen=True)
class Forgive:
    """What was told is no longer so; *pressed*: that it goes for want of memory."""

    id: str
    pressed: bool = False


@dataclass(frozen=True)
class Cull:
    """End the kernel; *cause* is why in one word."""

    id: str
    why: str
    cause: str = field(default="idle", compare=False)


@dataclass(frozen=True)
class Renew:
    """Restart the kernel, as its owner asked."""

    id: str
    why: str


Action = Warn | Forgive | Cull | Renew


def due(kernel: KernelView, now: float) -> tuple[float, str]:
    """When the kernel is to be ended, if nothing changes, and why; `NEVER` and "" otherwise. Want of memory apart."""
    end = _due(kernel, now)
    return end.at, end.why


@dataclass(frozen=True)
class _End:
    """An end ahead at *at*, of which it is to be told from *tell* on; *cause* is why in one word."""

    at: float = NEVER
    why: str = ""
    cause: str = ""
    tell: float = NEVER


def _due(kernel: KernelView, now: float) -> _End:
    policy, reasons = kernel.policy, []
    if policy.max_life:
        reasons.append((kernel.born + policy.max_life, f"it lives for {policy.max_life:g} s", "age", policy.max_life))
    if kernel.busy and policy.busy_timeout:
        timeout = policy.busy_timeout
        reasons.append((kernel.since + timeout, f"it is busy for {timeout:g} s", "busy", timeout))
    if not kernel.busy and policy.idle_timeout and (policy.connected or not kernel.connections):
        timeout = policy.idle_timeout
        reasons.append((kernel.since + timeout, f"it is idle for {timeout:g} s", "idle", timeout))
    if not reasons:
        return _End()
    at, why, cause, timeout = min(reasons)
    at = max(at, kernel.kept_until)
    # Who was not told, since the last client went just now, or a timeout was set, or no look came in time, is told now.
    told_for = kernel.told if kernel.told is not None else now + min(policy.warn_before, timeout)
    return _End(max(at, told_for), why, cause, at - policy.warn_before)


def plan(kernels: Sequence[KernelView], host: Host, now: float) -> list[Action]:
    """What to do now. Nothing is done to kernels that are held; one at a time is ended for want of memory."""
    actions: list[Action] = []
    for kernel in kernels:
        if kernel.held:
            continue
        end = _due(kernel, now)
        if now >= end.at:
            actions.append(Cull(kernel.id, end.why, end.cause))
        elif now >= end.tell:
            if kernel.told is None or kernel.told < end.at:
                actions.append(Warn(kernel.id, end.why, end.at))
        elif kernel.told is not None:
            actions.append(Forgive(kernel.id))
    doomed = {action.id for action in actions if isinstance(action, Cull)}
    left = [kernel for kernel in kernels if kernel.id not in doomed and not kernel.held]
    idle = [kernel for kernel in left if not kernel.busy]
    if not (host.reserve and host.available < host.reserve):
        actions += [Forgive(kernel.id, pressed=True) for kernel in left if kernel.pressed is not None]
    elif not (doomed or host.regains):
        first = _first_for_memory(idle, now)
        others = [kernel for kernel in left if kernel is not first and kernel.pressed is not None]
        actions += [Forgive(kernel.id, pressed=True) for kernel in others]
        actions += _for_memory(first, host, now) if first is not None else []
    actions += [Renew(kernel.id, why) for kernel in idle if (why := _why_renew(kernel, now))]
    return actions


def _first_for_memory(idle: Sequence[KernelView], now: float) -> KernelView | None:
    """The least recently used of those nobody is connected to or asked to keep."""
    spare = [
        kernel for kernel in idle if kernel.kept_until <= now and (kernel.policy.connected or not kernel.connections)
    ]
    return min(spare, key=lambda kernel: kernel.since, default=None)


def _for_memory(kernel: KernelView, host: Host, now: float) -> list[Action]:
    """It is told at one look and ended at the next, unless it was used or kept meanwhile."""
    if not kernel.policy.warn_before:
        return [Cull(kernel.id, SHORT, "memory")]
    if kernel.pressed is None or kernel.pressed <= max(kernel.since, kernel.kept_until):
        return [Warn(kernel.id, SHORT, now + host.pace, pressed=True)]
    # One look may follow another at once, where that took long; and none comes exactly in time.
    return [Cull(kernel.id, SHORT, "memory")] if now - kernel.pressed >= host.pace / 2 else []


def _why_renew(kernel: KernelView, now: float) -> str:
    wish = kernel.recycle
    if wish.age and now - kernel.born >= wish.age:
        return f"its owner wants it anew after {wish.age:g} s"
    if wish.memory and kernel.memory >= wish.memory:
        return f"its owner wants it anew above {wish.memory} bytes"
    if wish.uses and kernel.uses >= wish.uses:
        return f"its owner wants it anew after {wish.uses} cells"
    return ""
