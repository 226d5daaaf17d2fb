"""`loop`: the longest time for which the server answers nobody else while 20 kernels start."""

from __future__ import annotations

from functools import partial

from benchmarks.client import Client
from benchmarks.measures.many import start_many
from benchmarks.run import Run, take_turns
from benchmarks.stats import Row

KERNELS = 20
MODULE = "kp_bench_loop"
SOURCE = '''
"""A server extension that watches the event loop: how late a callback every 5 ms was at most."""

import asyncio, json, time
from jupyter_server.base.handlers import APIHandler
from tornado import web

PERIOD = 0.005


class Watch:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.reset()
        self.tick()

    def reset(self):
        self.longest = self.cpu = 0.0
        self.last, self.last_cpu = time.perf_counter(), time.thread_time()

    def tick(self):
        now, cpu = time.perf_counter(), time.thread_time()
        late = now - self.last - PERIOD
        if late > self.longest:
            self.longest, self.cpu = late, cpu - self.last_cpu
        self.last, self.last_cpu = now, cpu
        self.loop.call_later(PERIOD, self.tick)


class LoopHandler(APIHandler):
    auth_resource = "kernels"
    watch = None

    @web.authenticated
    async def get(self):
        self.finish(json.dumps({"longest": self.watch.longest, "cpu": self.watch.cpu}))

    @web.authenticated
    async def delete(self):
        self.watch.reset()
        self.set_status(204)
        self.finish()


def _jupyter_server_extension_points():
    return [{"module": "kp_bench_loop"}]


def _load_jupyter_server_extension(serverapp):
    serverapp.web_app.add_handlers(".*$", [(r"/kp-bench/loop", LoopHandler)])


async def _start_jupyter_server_extension(serverapp):
    LoopHandler.watch = Watch()
'''


async def measure_loop(run: Run) -> list[Row]:
    """The event loop's longest block while 20 kernels start at once and answer: stock and ours.

    `seconds` is what the loop's users see, and on a machine that is out of cores includes waiting
    for one; `cpu` is what the loop's own thread computed in that time.
    """
    rows: list[Row] = []
    async with run.servers("stock", "ours", extensions={MODULE: SOURCE}) as (stock, ours):
        servers = {"stock": stock, "ours": ours}
        for number, sides in take_turns(["stock", "ours"], run.rounds):
            for side in sides:
                take = partial(_watch_starts, servers[side].client)
                rows.append(await run.sample(number, side, take, (stock, ours)))
            run.show("loop", number, rows)
    return rows


async def _watch_starts(client: Client) -> Row:
    await client.request("DELETE", "/kp-bench/loop")
    async with start_many(client, KERNELS) as ended:
        seen = await client.request("GET", "/kp-bench/loop")
    return {"seconds": seen["longest"], "cpu": seen["cpu"], "lost": KERNELS - len(ended)}
