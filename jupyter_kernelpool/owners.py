"""Whose kernels are whose: book-keeping for quotas, no isolation.

With `KernelPool.ownership = "single"` all kernels are one owner's. With "user" the owner is the user whose request
started the kernel, as Jupyter Server's identity provider names him; a fork is its parent's owner's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from jupyter_kernelpool.allowance import Allowance, read_limit
from jupyter_kernelpool.errors import NotValid, QuotaExceeded

SINGLE = "-"
SUMMED = ("memory", "cpu", "processes")
RETRY_AFTER = 5

_acting_for: ContextVar[str | None] = ContextVar("acting_for", default=None)


def read_quota(given: Any) -> tuple[int, Allowance]:
    """How many kernels an owner may have (0: no limit), and what these may use together; raises `NotValid`."""
    if not isinstance(given, dict):
        raise NotValid(f"{given!r} must be a dict of limits by name")
    unknown = sorted(set(given) - {"kernels", *SUMMED})
    if unknown:
        raise NotValid(f"{unknown[0]!r} is no quota; there are: kernels, {', '.join(SUMMED)}")
    kernels = int(read_limit("processes", given.get("kernels", 0)))  # a count, as that is
    return kernels, Allowance().changed({name: read_limit(name, given[name]) for name in SUMMED if name in given})


def is_anonymous(identity_provider: Any) -> bool:
    """Whether the class *identity_provider* gives each login another user, as jupyter_server's own two do.

    Source: jupyter_server/auth/identity.py `generate_anonymous_user`, called for each token that comes.
    """
    own = {"IdentityProvider", "PasswordIdentityProvider", "LegacyIdentityProvider"}
    return identity_provider.__module__ == "jupyter_server.auth.identity" and identity_provider.__name__ in own


class Owners:
    """Who owns which kernel; *most* is how many each may have, starts under way counted (0: no limit)."""

    def __init__(self, ownership: str, most: int) -> None:
        self._by_user = ownership == "user"
        self._most = most
        self._owners: dict[str, str] = {}
        self._starting: Counter[str] = Counter()

    def of(self, kernel_id: str) -> str:
        """The kernel's owner."""
        return self._owners.get(kernel_id, SINGLE)

    def kernels_of(self, owner: str) -> frozenset[str]:
        """The ids of his kernels."""
        return frozenset(kernel_id for kernel_id, other in self._owners.items() if other == owner)

    def everybody(self) -> set[str]:
        """All who have a kernel."""
        return set(self._owners.values())

    @contextlib.contextmanager
    def starting(self, user: str | None) -> Iterator[str]:
        """A kernel is being started for *user*, or whom `acting_for` names; gives its owner, to be `settle`d.

        Raises `QuotaExceeded`.
        """
        owner = (_acting_for.get() or user or SINGLE) if self._by_user else SINGLE
        have = len(self.kernels_of(owner)) + self._starting[owner]
        if self._most and have >= self._most:
            raise QuotaExceeded(
                f"{have} kernels run or are starting, and KernelPool.owner_quota allows {self._most}",
                reason="quota", retry_after=RETRY_AFTER, limit=self._most,
            )  # fmt: skip
        self._starting[owner] += 1
        try:
            yield owner
        finally:
            self._starting[owner] -= 1

    def settle(self, kernel_id: str, owner: str) -> None:
        """The kernel runs, and is *owner*'s."""
        self._owners[kernel_id] = owner

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone."""
        self._owners.pop(kernel_id, None)

    @contextlib.contextmanager
    def acting_for(self, owner: str) -> Iterator[None]:
        """What is started meanwhile is *owner*'s, whoever asks: forks of a kernel of his."""
        token = _acting_for.set(owner)
        try:
            yield
        finally:
            _acting_for.reset(token)
