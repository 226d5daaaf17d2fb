"""Jupyter's own POST /api/kernels and /api/sessions, telling why a start is refused: 503 with Retry-After when all
places are taken or the kernelspec's kernels can't be started, 429 for a quota, 501 for a limit or a sandbox that can't
be held.

Upstream workaround: the kernel manager can refuse a start only by an exception. jupyter_server sends no
Retry-After for any (`APIHandler.write_error` looks at message and reason only), and `SessionRootHandler.post`
turns every exception into a 500. So where the configuration lets starts be refused, or as soon as those of a
kernelspec are since they fail anyway, subclasses of the two stock handlers take their places in the server's routing
table, and else never. A handler that another extension put in
front of the stock ones, or in their place, is left alone. PATCH /api/sessions/{id} with another kernel's name
swallows the exception itself and still answers 501.
https://github.com/jupyter-server/jupyter_server/blob/main/jupyter_server/services/sessions/handlers.py
"""

from __future__ import annotations

from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.services.kernels.handlers import MainKernelHandler
from jupyter_server.services.sessions.handlers import SessionRootHandler
from tornado import web

from jupyter_kernelpool.errors import REFUSALS, KernelPoolError
from jupyter_kernelpool.rest.base import write_error_body


def find_refusal(error: BaseException | None) -> KernelPoolError | None:
    """The refusal that *error* was raised from, if it was one."""
    while error is not None:
        if isinstance(error, REFUSALS):
            return error
        error = error.__cause__
    return None


class TellsRefusals:
    """Mixin over a stock handler whose `post` starts a kernel. Who may call it is decided by the stock method."""

    async def post(self) -> None:
        try:
            await ensure_async(super().post())  # type: ignore[misc]
        except web.HTTPError as error:
            refusal = find_refusal(error)
            if refusal is None:
                raise
            raise web.HTTPError(refusal.status, str(refusal)) from refusal

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        refusal = find_refusal(kwargs["exc_info"][1]) if "exc_info" in kwargs else None
        if refusal is None:
            super().write_error(status_code, **kwargs)  # type: ignore[misc]
        else:
            write_error_body(self, status_code, refusal)  # type: ignore[arg-type]


class KernelsHandler(TellsRefusals, MainKernelHandler):
    """POST and GET /api/kernels."""


class SessionsHandler(TellsRefusals, SessionRootHandler):
    """POST and GET /api/sessions."""


OURS: dict[Any, type[web.RequestHandler]] = {
    MainKernelHandler: KernelsHandler,
    SessionRootHandler: SessionsHandler,
}


def tell_refusals(web_app: web.Application) -> None:
    """Put our handlers where *web_app* has the stock ones; done again, it changes nothing."""
    for rule in web_app.wildcard_router.rules:
        rule.target = OURS.get(rule.target, rule.target)
