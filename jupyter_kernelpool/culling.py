"""Which kernels to end because nobody uses them, they run too long, or memory is short; computed without I/O.

The culler takes the view, calls `plan`, and carries out the actions. All times are seconds on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

NEVER = float("inf")


@dataclass(frozen=True)
class Policy:
    """For how long a kernel may be idle, busy, and live at all; 0 is for ever. *connected*: also with clients.

    *warn_before*: how long beforehand it is told.
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

    *held*: something is being done to it. *told*: what it was told, and when it will be ended. *memory* in bytes.
    *uses*: how many cells its present process has begun.
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
    memory: int = 0
    uses: int = 0
    recycle: Recycle = Recycle()


@dataclass(frozen=True)
class Host:
    """What the machine has left, and below what kernels are ended for it (0: never); bytes.

    *regains*: kernels that nobody owns are being ended for it, or what they had is not counted yet.
    """

    available: int
    reserve: int = 0
    regains: bool = False


@dataclass(frozen=True)
class Warn:
    """Tell that the kernel will be ended at *at*."""

    id: str
    why: str
    at: float


@dataclass(frozen=True)
class Forgive:
    """What was told is no longer so."""

    id: str


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


def due(kernel: KernelView) -> tuple[float, str]:
    """When the kernel is to be ended, if nothing changes, and why; `NEVER` and "" otherwise."""
    at, why, _ = _due(kernel)
    return at, why


def _due(kernel: KernelView) -> tuple[float, str, str]:
    """The same, and why in one word."""
    policy, reasons = kernel.policy, []
    if policy.max_life:
        reasons.append((kernel.born + policy.max_life, f"it lives for {policy.max_life:g} s", "age"))
    if kernel.busy and policy.busy_timeout:
        reasons.append((kernel.since + policy.busy_timeout, f"it is busy for {policy.busy_timeout:g} s", "busy"))
    if not kernel.busy and policy.idle_timeout and (policy.connected or not kernel.connections):
        reasons.append((kernel.since + policy.idle_timeout, f"it is idle for {policy.idle_timeout:g} s", "idle"))
    at, why, cause = min(reasons, default=(NEVER, "", ""))
    return max(at, kernel.kept_until) if why else at, why, cause


def plan(kernels: Sequence[KernelView], host: Host, now: float) -> list[Action]:
    """What to do now. Nothing is done to kernels that are held; one at a time is ended for want of memory."""
    actions: list[Action] = []
    for kernel in kernels:
        if kernel.held:
            continue
        at, why, cause = _due(kernel)
        if now >= at:
            actions.append(Cull(kernel.id, why, cause))
        elif now >= at - kernel.policy.warn_before:
            if kernel.told != at:
                actions.append(Warn(kernel.id, why, at))
        elif kernel.told is not None:
            actions.append(Forgive(kernel.id))
    doomed = {action.id for action in actions if isinstance(action, Cull)}
    left = [kernel for kernel in kernels if kernel.id not in doomed and not kernel.held and not kernel.busy]
    if host.reserve and host.available < host.reserve and not (doomed or host.regains):
        actions += _for_memory(left, now)
    actions += [Renew(kernel.id, why) for kernel in left if (why := _why_renew(kernel, now))]
    return actions


def _for_memory(idle: Sequence[KernelView], now: float) -> list[Action]:
    """The least recently used of those nobody is connected to or asked to keep."""
    spare = [
        kernel for kernel in idle if kernel.kept_until <= now and (kernel.policy.connected or not kernel.connections)
    ]
    if not spare:
        return []
    longest = min(spare, key=lambda kernel: kernel.since)
    return [Cull(longest.id, "memory is short, and it is idle for longest", "memory")]


def _why_renew(kernel: KernelView, now: float) -> str:
    wish = kernel.recycle
    if wish.age and now - kernel.born >= wish.age:
        return f"its owner wants it anew after {wish.age:g} s"
    if wish.memory and kernel.memory >= wish.memory:
        return f"its owner wants it anew above {wish.memory} bytes"
    if wish.uses and kernel.uses >= wish.uses:
        return f"its owner wants it anew after {wish.uses} cells"
    return ""
