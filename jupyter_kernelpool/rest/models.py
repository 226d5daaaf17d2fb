"""What the routes tell of recipes and kernels, as plain data. Pure."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

from jupyter_kernelpool.allowance import LIMITS, Breach
from jupyter_kernelpool.breaker import Breaker
from jupyter_kernelpool.decisions import Policy, target
from jupyter_kernelpool.health import UNRESPONSIVE, Standing, Verdict
from jupyter_kernelpool.ledger import Execution
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.memory import Memory
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.provisioner import PoolProvisioner
from jupyter_kernelpool.recipe_pool import Failure, RecipePool
from jupyter_kernelpool.recipes import Recipe
from jupyter_kernelpool.sandbox import LANDLOCK_NEEDED

Model = dict[str, Any]
OWNED = frozenset({State.ACTIVE, State.UNRESPONSIVE, State.HELD})
WAYS = {"fork": "template", "spawn": "spawn", "whole": "whole"}


def rfc3339(seconds: float) -> str:
    """*seconds* since the epoch as text, in UTC."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest of *values* that at least *share* of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


# -- the platform -----------------------------------------------------------------------------------


def why_disabled(manager: Any, config: Any) -> str | None:
    """Why *manager*, the server's, pools nothing, or None if it does."""
    if isinstance(manager, PoolingKernelManager):
        if not manager.pool.enabled:
            return "KernelPool.enabled is False"
        if sys.platform != "linux":
            return f"kernels are pooled on Linux only (this is {sys.platform})"
        if manager.pool.stopped:
            return "the pool has stopped, or its supervisor could not be started: see the server's log"
        return None
    if config.KernelPool.get("enabled", True) in (False, "False", "false", "0"):
        return "KernelPool.enabled is False"
    return f"the server's kernel manager is {type(manager).__module__}.{type(manager).__qualname__}"


def capabilities(manager: Any, why: str | None, unbounded: str | None) -> Model:
    """What can be done here, and why the rest can't; *why* is the reason why nothing can, *unbounded* the one why
    output can't be held to its limit."""
    pool = manager.pool if isinstance(manager, PoolingKernelManager) else None
    offered = {launcher.way for launcher in pool.launchers} if pool is not None else set()
    found: Model = {}
    for name, way in WAYS.items():
        reason = why or (None if way in offered else "KernelPool.launchers does not name it")
        found[name] = {"available": reason is None, "why": reason}
    found["limits"] = enforcement_model(manager, why, unbounded)
    landlock = pool.sandboxing.landlock if pool is not None else 0
    found["landlock"] = {"available": landlock >= LANDLOCK_NEEDED, "why": why or why_no_landlock(landlock)}
    found["bubblewrap"] = {"available": False, "why": "bwrap is not on PATH"}
    if shutil.which("bwrap"):
        found["bubblewrap"] = {"available": True, "why": None}
    alive = pool is not None and pool.supervision.ready
    found["supervisor"] = {"alive": alive, "pid": pool.supervision.pid if pool and alive else None}
    found["platform"] = {
        "system": sys.platform,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    return found


def enforcement_model(manager: Any, why: str | None, unbounded: str | None) -> Model:
    """For each limit, what holds kernels to it on this machine; *why* and *unbounded* as above."""
    found: Model = {}
    for limit in LIMITS:
        by, missing = None, why
        if isinstance(manager, PoolingKernelManager) and why is None:
            by, missing = manager.guard.allowances.who_holds(limit)
            if limit == "output" and unbounded is not None:
                by, missing = None, unbounded
        found[limit] = {"enforced": by is not None, "by": by, "why": missing}
    return found


def breach_model(breach: Breach | None) -> Model | None:
    """A limit that a kernel crossed."""
    if breach is None:
        return None
    return {
        "limit": breach.limit,
        "allowed": breach.allowed,
        "seen": breach.seen,
        "at": rfc3339(breach.at),
        "outcome": breach.outcome,
        "state_lost": breach.state_lost,
        "group": breach.group or None,
    }


def why_no_landlock(version: int) -> str | None:
    """Why Landlock of *version* can't hold `writable`, or None."""
    if version >= LANDLOCK_NEEDED:
        return None
    return f"version {LANDLOCK_NEEDED} is needed (Linux 6.2), here is {version or 'none'}"


# -- recipes ----------------------------------------------------------------------------------------


def memory_model(memory: Memory | None) -> Model | None:
    """Bytes that a process has for itself and shares; None if that could not be read."""
    if memory is None:
        return None
    return {"private": memory.uss, "shared": max(0, memory.rss - memory.uss)}


def count_active(kernels: Iterable[Any]) -> Counter[str]:
    """Kernels that have an owner, by recipe."""
    records = (find_record(kernel) for kernel in kernels)
    return Counter(record.recipe for record in records if record is not None and record.state in OWNED)


def recipe_model(pool: RecipePool, *, active: int, policy: Policy, now: float, memory: Mapping[int, Memory]) -> Model:
    """A recipe; *now* is monotonic, *memory* what `read_memory` found."""
    recipe, settings, launcher = pool.recipe, pool.recipe.settings, pool.launcher
    view = pool.view()
    return {
        "name": recipe.name,
        "kernel_name": recipe.kernel_name,
        "key": recipe.key,
        "hits": pool.hits,
        "misses": pool.misses,
        "warm": len(view.warm),
        "starting": pool.starting,
        "active": active,
        "target": target(view, policy, now),
        "waiting": pool.waiting,
        "waits": {"p50": quantile(pool.waits, 0.5), "p95": quantile(pool.waits, 0.95)},
        "last_error": failure_model(pool.last_error),
        "breaker": pool.breaker,
        "retry_in": max(0.0, pool.retry_at - now) if pool.retry_at else None,
        "stage": pool.stage.value,
        "launcher": launcher.way if launcher is not None else None,
        "template": template_model(launcher, memory),
        "pinned": pool.pinned,
        "settings": {
            "warm": settings.warm,
            "max": settings.max,
            "preload": list(settings.preload),
            "init_code": bool(settings.init_code),
            "launcher": settings.launcher,
            "limits": dict(settings.limits),
            "cull": dict(settings.cull),
            "sandbox": sandbox_model(recipe),
            "recovery": settings.recovery,
            "on_unresponsive": settings.on_unresponsive,
            "restore": settings.restore,
        },
    }


def sandbox_model(recipe: Recipe) -> Model | None:
    """How kernels of *recipe* are confined; None where they are not."""
    sandbox, confinement = recipe.settings.sandbox, recipe.confinement
    if confinement is None:
        return None
    return {
        "preset": sandbox.preset,
        "launch_prefix": list(confinement.prefix),
        "network": sandbox.network,
        "writable": list(confinement.writable) if confinement.writable is not None else None,
        "hidden": list(confinement.hidden),
        "lacks": confinement.lacks,
    }


def failure_model(failure: Failure | None) -> Model | None:
    if failure is None:
        return None
    return {"reason": failure.reason, "traceback": failure.traceback, "at": rfc3339(failure.at)}


def template_model(launcher: Any, memory: Mapping[int, Memory]) -> Model | None:
    if launcher is None or not launcher.pid:
        return None
    return {
        "pid": launcher.pid,
        "memory": memory_model(memory.get(launcher.pid)),
        "seconds_to_load": getattr(launcher, "seconds_to_load", None),
    }


def totals(pool: KernelPool, recipes: Sequence[Model], kernels: int) -> Model:
    """Sums over the *recipes* there are now; *kernels* is the number of kernels of the server."""
    sums = {name: sum(recipe[name] for recipe in recipes) for name in ("hits", "misses", "warm", "starting")}
    return {
        **sums,
        "active": kernels,
        "pending": pool.admission.pending,
        "waiting": pool.admission.waiting + sum(recipe["waiting"] for recipe in recipes),
        "max_kernels": pool.max_kernels,
    }


def no_totals(kernels: int) -> Model:
    """The same, where there is no pool."""
    zero = dict.fromkeys(("hits", "misses", "warm", "starting", "pending", "waiting", "max_kernels"), 0)
    return {**zero, "active": kernels}


# -- kernels ----------------------------------------------------------------------------------------


def find_record(kernel: Any) -> Record | None:
    """The record of *kernel*'s process; None if it was not started by us, or not yet."""
    provisioner = getattr(kernel, "provisioner", None)
    return provisioner.record if isinstance(provisioner, PoolProvisioner) else None


def find_way(kernel: Any) -> str | None:
    """How *kernel* came to be; None while that is open."""
    if not getattr(kernel, "owns_kernel", True):
        return "external"
    record = find_record(kernel)
    if record is not None:
        return record.way
    provisioner = getattr(kernel, "provisioner", None)
    if isinstance(provisioner, PoolProvisioner) or not kernel.has_kernel:
        return None
    return "cold" if type(provisioner) is LocalProvisioner else "other"


def find_state(kernel: Any, verdict: Verdict) -> State:
    """Where *kernel* is in its life, as far as can be known of one that has no record; *verdict* is what it was found
    to be last."""
    record = find_record(kernel)
    if record is not None:
        return record.state
    if getattr(kernel, "execution_state", None) == "dead":
        return State.DEAD
    if kernel.has_kernel or not getattr(kernel, "owns_kernel", True):
        return State.UNRESPONSIVE if verdict in UNRESPONSIVE else State.ACTIVE
    return State.STARTING


def kernel_model(kernel_id: str, kernel: Any, connections: int, verdict: Verdict = Verdict.UNKNOWN) -> Model:
    """A kernel of the server's, whoever started it; *verdict* is what it was found to be last."""
    provisioner = getattr(kernel, "provisioner", None)
    record = find_record(kernel)
    created = getattr(provisioner, "created", None)
    last_activity = getattr(kernel, "last_activity", None)
    return {
        "id": kernel_id,
        "name": kernel.kernel_name,
        "recipe": record.recipe if record is not None else None,
        "way": find_way(kernel),
        "state": find_state(kernel, verdict).value,
        "execution_state": getattr(kernel, "execution_state", None),
        "reason": getattr(kernel, "reason", None) or None,
        "last_activity": rfc3339(last_activity.timestamp()) if last_activity is not None else None,
        "connections": connections,
        "pid": getattr(provisioner, "pid", None) or None,
        "created": rfc3339(created) if created is not None else None,
        "story": story_model(record),
        "temporary": bool(getattr(kernel, "temporary", False)),
    }


def health_model(standing: Standing) -> Model:
    """What a kernel was found to be when it was nudged last; *failures* in a row."""
    return {
        "status": standing.verdict.value,
        "checked": rfc3339(standing.checked) if standing.checked is not None else None,
        "failures": standing.failures,
        "why": standing.why or None,
    }


def current_model(execution: Execution | None, now: float, wall: float) -> Model | None:
    """What runs in a kernel's main shell; *now* is monotonic, *wall* the same moment since the epoch."""
    if execution is None:
        return None
    return {
        "execution_id": execution.msg_id,
        "started": rfc3339(wall - (now - execution.began)),
        "seconds": execution.ran(now),
    }


def breaker_model(kernel_name: str, breaker: Breaker, now: float) -> Model:
    """A kernelspec whose last start failed; *now* is monotonic."""
    state = breaker.state(now)
    return {
        "kernel_name": kernel_name,
        "state": state,
        "failures": breaker.failures,
        "retry_in": max(0.0, breaker.retry_at - now) if state == "open" else None,
        "reason": breaker.reason,
    }


def story_model(record: Record | None) -> list[Model]:
    """The moves of the kernel's present process, in order."""
    moves = record.story if record is not None else ()
    return [{"to": move.to.value, "why": move.why, "at": rfc3339(move.at)} for move in moves]
