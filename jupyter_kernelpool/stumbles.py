"""A loop over many things goes on when one of them fails, and tells of that once for as long as it lasts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class Stumbles:
    """Over what one loop stumbled, and why, since it last succeeded with that."""

    def __init__(self, log: logging.Logger, who: str) -> None:
        self._log = log
        self._who = who
        self._why: dict[str, str] = {}

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Go on after an exception; it is logged with *what*, unless the same one was the time before."""
        try:
            yield
        except Exception as error:
            if repr(error) != self._why.get(what):
                self._why[what] = repr(error)
                self._log.exception("%s stumbled over %s; it goes on", self._who, what)
        else:
            self._why.pop(what, None)

    def forget(self, what: str) -> None:
        """That is gone for good."""
        self._why.pop(what, None)
