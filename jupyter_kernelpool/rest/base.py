"""What all routes share: who may ask, how a body is read, a list is cut, and an error is told."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Any, TypeVar, cast

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_escape, url_path_join
from tornado import web

from jupyter_kernelpool.errors import Disabled, KernelPoolError, NotFound, NotParsed, NotValid
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.rest.models import why_disabled

Item = TypeVar("Item")
Choice = TypeVar("Choice", bound=StrEnum)
Method = TypeVar("Method", bound=Callable[..., Any])

PREFIX = "/kernelpool/v1"
READS = frozenset({"GET", "HEAD", "OPTIONS"})
LIMIT = 1000
CODES = {
    400: "not_parsed",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "wrong_state",
    422: "not_valid",
}
HINTS = {
    403: "Send a token, and ask the server's administrator for the permission that the message names.",
    405: "GET /kernelpool/v1/openapi.json lists what each route takes.",
}


def authorized_to_pool(method: Method) -> Method:
    """As `authorized`, asking for the verb's action on `kernelpool`; belongs below `web.authenticated`."""
    return cast("Method", cast("Any", authorized)(resource="kernelpool")(method))


def authorized_to_execute(method: Method) -> Method:
    """As `authorized`, asking for `execute` on `kernels`; belongs below `web.authenticated`."""
    return cast("Method", cast("Any", authorized)("execute")(method))


class KernelPoolHandler(APIHandler):
    """The base of our handlers. Reads are no activity; errors of ours are told as what they are."""

    auth_resource = "kernels"

    async def prepare(self) -> None:  # type: ignore[override]
        self._track_activity = self.request.method not in READS
        await super().prepare()

    # -- what is asked ------------------------------------------------------------------------------

    @property
    def pooling(self) -> PoolingKernelManager | None:
        """The server's kernel manager if it is ours, switched on or not."""
        manager = self.kernel_manager
        return manager if isinstance(manager, PoolingKernelManager) else None

    def our_manager(self) -> PoolingKernelManager:
        """The server's kernel manager, which has to be ours, with or without a pool; raises `Disabled`."""
        if self.pooling is None:
            why = self.why_disabled()
            raise Disabled(f"this server's kernels are not watched: {why}", why=why)
        return self.pooling

    def why_disabled(self) -> str | None:
        """Why nothing is pooled on this server, or None if the pool works."""
        return why_disabled(self.kernel_manager, self.settings["config"])

    async def working_manager(self) -> PoolingKernelManager:
        """Our kernel manager with its pool started; raises `Disabled` with the reason if there is none."""
        manager = self.pooling
        if manager is not None:
            await manager.start_pool()
        why = self.why_disabled()
        if manager is None or why is not None:
            raise Disabled(f"this server keeps no kernels warm: {why}", why=why)
        return manager

    def read_object(self) -> dict[str, Any]:
        """The body as a JSON object; raises `NotParsed`. Its content type is not looked at, as in Jupyter."""
        try:
            body = json.loads(self.request.body, parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise NotParsed(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise NotParsed(f"the body is JSON, but {type(body).__name__} and not an object")
        return body

    def read_choice(self, name: str, choices: type[Choice]) -> Choice | None:
        """The query's *name* as one of *choices*, None without; raises `NotValid`."""
        value = self.get_query_argument(name, None)
        if value is None:
            return None
        try:
            return choices(value)
        except ValueError as error:
            allowed = ", ".join(choices)
            raise NotValid(f"{name} = {value!r} must be one of {allowed}", field=name) from error

    def cut(self, items: Iterable[tuple[str, Item]]) -> tuple[list[Item], str | None]:
        """The page of *items*, (key, item), that the query's `limit` and `cursor` ask for; and the next cursor."""
        return cut(
            items,
            limit=read_limit(self.get_query_argument("limit", None)),
            after=read_cursor(self.get_query_argument("cursor", None)),
        )

    # -- what is answered ---------------------------------------------------------------------------

    def reply(self, model: Any, status: int = 200) -> None:
        """Finish with *model* as JSON."""
        self.set_status(status)
        self.finish(json.dumps(model, allow_nan=False))

    def reply_created(self, model: Any, *parts: str) -> None:
        """Finish with 201, *model*, and the Location made of *parts*."""
        escaped = (url_escape(part) for part in parts)
        self.set_header("Location", url_path_join(self.base_url, PREFIX, *escaped))
        self.reply(model, 201)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As tornado, but a refusal is no incident of the server's."""
        if isinstance(value, KernelPoolError) and value.status not in (500, 502):
            self.log.debug("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Called by tornado for whatever was raised: an error of ours has its own status."""
        error = _raised(kwargs)
        super().send_error(error.status if isinstance(error, KernelPoolError) else status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The error's body, and Retry-After where trying again later helps."""
        write_error_body(self, status_code, _raised(kwargs))


class UnknownHandler(KernelPoolHandler):
    """Answers for paths below ours that are no routes, so that clients get JSON there too."""

    @web.authenticated
    async def get(self, *_: str) -> None:
        raise NotFound(f"there is no route {self.request.path!r}")

    post = put = patch = delete = get


# All that is below our prefix and no route; a trailing slash is left to Jupyter's redirect.
UNKNOWN: list[tuple[Any, ...]] = [(PREFIX + r"/(?:.*[^/])", UnknownHandler)]


def error_body(status: int, error: BaseException | None) -> dict[str, Any]:
    """What is told of *error*: Jupyter's `message` and `reason`, our `code`, `hint`, `delivered`, and the facts.

    Nothing of an unexpected exception is told: it is in the server's log.
    """
    if isinstance(error, KernelPoolError):
        return {
            **error.facts,
            "message": str(error),
            "reason": error.facts.get("reason"),
            "code": error.code,
            "hint": error.hint,
            "delivered": False,
        }
    message = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown HTTP error"
    reason = None
    if isinstance(error, web.HTTPError):
        message, reason = error.get_message() or message, error.reason
    elif error is not None:
        message = "Unhandled error"
    return {
        "message": message,
        "reason": reason,
        "code": CODES.get(status, "internal" if status >= 500 else "not_parsed"),
        "hint": HINTS.get(status, "The server's log says more." if status >= 500 else ""),
        "delivered": False if status < 500 else "unknown",
    }


def write_error_body(handler: web.RequestHandler, status: int, error: BaseException | None) -> None:
    """Finish *handler* with the body of *error*, and Retry-After if the error knows it."""
    body = error_body(status, error)
    if "retry_after" in body:
        handler.set_header("Retry-After", str(math.ceil(body["retry_after"])))
    handler.finish(json.dumps(body, default=str))


def read_limit(text: str | None) -> int:
    """How many things a page has at most; raises `NotValid`."""
    if text is None:
        return LIMIT
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= LIMIT:
        raise NotValid(f"limit = {text!r} must be a whole number from 1 to {LIMIT}", field="limit")
    return int(text)


def read_cursor(text: str | None) -> str:
    """The key after which the page begins; raises `NotValid`."""
    if text is None:
        return ""
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise NotValid(f"cursor = {text!r} is not one that a list gave as `next`", field="cursor") from error


def cut(items: Iterable[tuple[str, Item]], *, limit: int, after: str) -> tuple[list[Item], str | None]:
    """A page of *items* in the order of their keys, and the cursor of the next one, if there is one.

    A cursor is the last key, so that pages stay right while things come and go.
    """
    rest: Sequence[tuple[str, Item]] = sorted((item for item in items if item[0] > after), key=lambda item: item[0])
    more = len(rest) > limit
    token = base64.urlsafe_b64encode(rest[limit - 1][0].encode()).decode() if more else None
    return [item for _, item in rest[:limit]], token


def _raised(kwargs: dict[str, Any]) -> BaseException | None:
    information = kwargs.get("exc_info")
    return information[1] if information else None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
