"""Every error of ours: a sentence, an HTTP status, a stable code, its facts as attributes, and a hint.

Nothing here knows HTTP libraries: `rest/` and `manager.py` translate. An exception in a user's code is a
result, never one of these.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KernelPoolError(Exception):
    """The base; *facts* become attributes and fields of the error body."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    hint: ClassVar[str] = ""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)


class InvalidTransition(KernelPoolError):
    """A process was to move to a state that its present one does not lead to: a defect of ours."""

    code = "invalid_transition"


class NotFound(KernelPoolError):
    """No recipe, kernel or other thing of that name."""

    status = 404
    code = "not_found"
    hint = "List what exists first."


class WrongState(KernelPoolError):
    """The thing exists, but not in a state that allows this, or the name is taken."""

    status = 409
    code = "wrong_state"


class Busy(WrongState):
    """The kernel runs a cell, and did not come to rest in the time that was given."""

    code = "busy"
    hint = "Try again when the cell has ended, or give a longer timeout."


class NameTaken(WrongState):
    """Another kernel or checkpoint has that name."""

    code = "name_taken"
    hint = "Choose another name, or leave it out."


class NotRelated(WrongState):
    """A kernel can only become what it, or a relative of its, once was."""

    code = "not_related"
    hint = "GET /kernelpool/v1/lineage shows who was forked from whom."


class TooLarge(KernelPoolError):
    """The folder to copy holds more than is allowed, *limit*; nothing was copied."""

    status = 413
    code = "too_large"
    hint = (
        "Work in a smaller folder, share the files, or raise KernelPool.max_copied_bytes or "
        "KernelPool.max_copied_files."
    )


class CopyFailed(KernelPoolError):
    """The folder could not be copied; the message says why."""

    status = 507
    code = "copy_failed"
    hint = "Free space there, or set KernelPool.copies_dir to a folder that has more."


class CannotFork(KernelPoolError):
    """This kernel can't be forked, now or ever; *reason* says why."""

    status = 501
    code = "cannot_fork"
    hint = "GET /kernelpool/v1/kernels/{kernel} shows under capabilities what this kernel can do."


class Disabled(WrongState):
    """Nothing is pooled on this server; *why* says the reason."""

    code = "disabled"
    hint = "GET /kernelpool/v1/pool says what this server can do."


class NotValid(KernelPoolError):
    """The request was understood and its content is not allowed; the message names field and value."""

    status = 422
    code = "not_valid"


class Loosens(NotValid):
    """A limit of a kernel or an execution may be tightened; only the server's configuration loosens it."""

    code = "loosens"
    hint = "Ask for less, or set KernelLimits.allow_loosen on the server."


class NotEnforceable(KernelPoolError):
    """What was asked for can't be enforced here; *needed* says what it would take. Nothing was started."""

    status = 501
    code = "not_enforceable"
    hint = "GET /kernelpool/v1/pool says what this server can enforce."


class NotParsed(KernelPoolError):
    """The request's body is not what the route takes."""

    status = 400
    code = "not_parsed"
    hint = "Send a JSON object."


class LaunchFailed(KernelPoolError):
    """A process could not be launched or did not become ready; *reason* says why."""

    status = 502
    code = "start_failed"
    hint = "GET /kernelpool/v1/pool shows the recipe's last error; kernels start cold meanwhile."


class Unfit(LaunchFailed):
    """The recipe cannot be launched this way at all (no fork, old ipykernel, failing preload, threads).

    *reason* is a line, *traceback* what Python printed, if anything.
    """

    code = "unfit"


class PoolExhausted(KernelPoolError):
    """`KernelPool.max_kernels` kernels run or are starting; *retry_after* is in seconds."""

    status = 503
    code = "exhausted"
    hint = "Shut a kernel down, or raise KernelPool.max_kernels."


class StartsFail(KernelPoolError):
    """Kernels of that kernelspec fail one after the other as they start; *retry_after* is in seconds."""

    status = 503
    code = "starts_fail"
    hint = "Mend the kernelspec or its environment: the server's log says what its kernels print."


class QuotaExceeded(KernelPoolError):
    """The owner has as many kernels as `KernelPool.owner_quota` allows; *retry_after* is in seconds."""

    status = 429
    code = "quota"
    hint = "Shut one of your kernels down."


class SupervisorGone(KernelPoolError):
    """The process that owns our processes is not there: they are dead, and a new one must be started."""

    code = "supervisor_gone"


# Starts that are not wanted, or can't be as they were asked for.
REFUSALS = (PoolExhausted, QuotaExceeded, NotEnforceable, LaunchFailed, StartsFail)
