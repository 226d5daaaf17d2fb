"""GET /events and GET /alerts: who may ask, what is asked, and what a server in this process answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from tornado.httputil import HTTPHeaders

from jupyter_kernelpool.events import REMEMBERED

EVENTS = "/kernelpool/v1/events"


class Stream:
    """A client of the stream that may stop reading: what it read so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self, start: str) -> str:
        """The rest of the next line that begins with *start*."""
        async with asyncio.timeout(30):
            while not (line := (await self.reader.readline()).decode()).startswith(start):
                assert line, "the stream ended"
        return line.removeprefix(start).strip()


@pytest.fixture
def kp_follow(kp_fetch: Any, jp_http_port: int, jp_base_url: str, jp_auth_header: dict[str, str]) -> Any:
    """Opens a stream: `await kp_follow("?type=dead")`; returns once the server has answered."""
    streams: list[Stream] = []

    async def follow(query: str = "", **headers: str) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", jp_http_port, limit=1 << 16)
        lines = [f"GET {jp_base_url.rstrip('/')}{EVENTS}{query} HTTP/1.0"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in {**jp_auth_header, **headers}.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        streams.append(Stream(reader, writer))
        assert " 200 " in await streams[-1].line("HTTP/1")
        await streams[-1].line("\r\n")
        return streams[-1]

    yield follow
    for stream in streams:
        stream.writer.close()


@pytest.fixture
def kp_events(jp_serverapp: Any) -> Any:
    return jp_serverapp.kernel_manager.events


# -- who and what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/events", "/alerts"])
async def test_no_token_no_answer(kp_call: Any, path: str) -> None:
    assert (await kp_call("GET", path, headers=HTTPHeaders())).code == 403


@pytest.mark.parametrize("path", ["/events", "/alerts"])
async def test_reading_needs_read_on_kernels(
    kp_call: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    asked = []

    class Denying(Authorizer):
        def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
            asked.append((action, resource))
            return False

    monkeypatch.setitem(jp_serverapp.web_app.settings, "authorizer", Denying())
    assert (await kp_call("GET", path)).code == 403
    assert asked == [("read", "kernels")]


@pytest.mark.parametrize(
    "query, field",
    [("?context=c", "context"), ("?types=dead", "types"), ("?type=died", "type"), ("?type=dead,nothing", "type")],
)
async def test_filters_that_there_are_not_are_refused(kp_call: Any, query: str, field: str) -> None:
    reply = await kp_call("GET", "/events" + query)
    assert (reply.code, reply.model["field"]) == (422, field)


async def test_a_last_id_that_is_no_number_is_refused(kp_call: Any, jp_auth_header: dict[str, str]) -> None:
    reply = await kp_call("GET", "/events", headers={**jp_auth_header, "Last-Event-ID": "abc:3"})
    assert (reply.code, reply.model["field"]) == (422, "Last-Event-ID")


async def test_a_kernel_that_never_was_is_not_found(kp_call: Any) -> None:
    assert (await kp_call("GET", "/events?kernel=none")).code == 404


async def test_a_kernel_that_is_gone_is_remembered(kp_follow: Any, kp_events: Any) -> None:
    kp_events.emit("dead", "gone", now=time.time(), reason="shut down")
    stream = await kp_follow("?kernel=gone", Last_Event_ID=str(kp_events.last - 1))
    assert await stream.line("event: ") == "dead"


async def test_the_token_in_the_address_is_no_filter(kp_follow: Any, kp_events: Any, jp_serverapp: Any) -> None:
    stream = await kp_follow(f"?token={jp_serverapp.identity_provider.token}&type=dead")
    kp_events.emit("dead", "k", now=time.time())
    assert await stream.line("id: ") == str(kp_events.last)


class TestAnotherKernelManager:
    @pytest.fixture
    def jp_server_config(self) -> dict[str, Any]:
        return {
            "ServerApp": {
                "jpserver_extensions": {"jupyter_kernelpool": True},
                "kernel_manager_class": "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager",
            }
        }

    @pytest.mark.parametrize("path", ["/events", "/alerts"])
    async def test_nothing_is_watched_there(self, kp_call: Any, path: str) -> None:
        reply = await kp_call("GET", path)
        assert (reply.code, reply.model["code"]) == (409, "disabled")


# -- a slow client ----------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_is_told_of_a_gap_and_holds_nothing_back(
    kp_follow: Any, kp_events: Any
) -> None:
    slow, quick = await kp_follow(), await kp_follow()
    long = "x" * 10_000
    first = kp_events.last + 1
    for _ in range(4):  # 80 MB; what the sockets hold is a part of it
        for _ in range(REMEMBERED // 2):
            kp_events.emit("busy", "k", now=time.time(), reason=long)
        assert await quick.line("id: ") == str(kp_events.last - REMEMBERED // 2 + 1)
        while await quick.line("id: ") != str(kp_events.last):
            pass
    assert len(kp_events.recent) == REMEMBERED

    seen = [int(await slow.line("id: "))]
    assert seen == [first]
    while True:
        name = await slow.line("event: ")
        if name == "warning":
            break
        assert name == "busy"
    told = await slow.line("data: ")
    assert '"code": "gap"' in told
    assert int(told.rpartition(": ")[2].strip("}")) > 0
    while int(await slow.line("id: ")) != kp_events.last:
        pass


# -- alerts -----------------------------------------------------------------------------------------


async def test_a_quiet_server_has_every_alert_and_none_fires(kp_call: Any) -> None:
    alerts = (await kp_call("GET", "/alerts")).model["alerts"]
    assert len(alerts) == 5
    assert not [alert for alert in alerts if alert["firing"] or alert["since"]]


async def test_an_alert_is_told_from_its_line_on(kp_call: Any, jp_serverapp: Any) -> None:
    async def failures() -> Any:
        return next(one for one in (await kp_call("GET", "/alerts")).model["alerts"] if "failures" in one["name"])

    watch = jp_serverapp.kernel_manager.lookout.watch
    for _ in range(9):
        watch.ended("ok", 1.0, None, time.time())
    watch.ended("died", 1.0, None, time.time())
    just_under = await failures()
    assert (just_under["firing"], just_under["value"], just_under["threshold"]) == (False, 0.1, 0.1)
    watch.ended("died", 1.0, None, time.time())
    past = await failures()
    assert (past["firing"], past["value"]) == (True, pytest.approx(2 / 11))
    assert past["since"].endswith("Z")
    assert past["hint"]
