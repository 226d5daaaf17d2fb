"""Settings that belong together, by the use that a server is put to: `KernelPool.preset`. Pure.

They lie below what is configured: whatever somebody set, in a file or on the command line, holds.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from traitlets.config import Config

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # One person's machine: the defaults.
    "laptop": {},
    # One of hundreds of servers on a few machines, most of them idle: nothing is there before it is used, nor for long
    # after. Memory budgets are those of the server's control group, which all else looks at.
    "hub": {
        "KernelPool": {"warm": 1, "max_warm": 2, "warm_at_start": False, "recipe_idle": 600.0},
        "KernelHealth": {"interval": 60.0},
    },
    # A server that runs code for language models: a few kernels, short cells, what hangs is replaced.
    "coderunner": {
        "KernelPool": {"warm": 2, "max_warm": 5, "max_kernels": 5, "exhausted": "wait", "wait_timeout": 30.0},
        "KernelCuller": {"idle_timeout": 300.0, "connected": True},
        "KernelHealth": {
            "interval": 30.0, "timeout": 10.0, "retries": 3, "backoff": 2.0, "on_unresponsive": "restart",
        },
        "KernelLimits": {
            "execution_timeout": 600.0, "memory": 1 << 30, "output": 10 << 20,
            **({"cpu": 0.8} if sys.platform == "linux" else {}),  # else nothing holds it
        },
        "ServerApp": {"websocket_ping_interval": 30, "websocket_ping_timeout": 10},  # seconds; for kernels: `pings`
    },
}  # fmt: skip


def chosen(config: Config) -> str:
    """The preset that *config* names; what it says may be wrong, which `KernelPool.preset` then tells."""
    return str(config.get("KernelPool", {}).get("preset", "laptop")).lower()


def under(config: Config) -> Config:
    """*config*, and what the preset that it names says where it says nothing."""
    whole = Config(copy.deepcopy(PRESETS.get(chosen(config), {})))
    whole.merge(config)
    return whole


def for_server(config: Config) -> dict[str, Any]:
    """What the preset sets on the server itself, where *config* says nothing of it; by trait."""
    wanted = PRESETS.get(chosen(config), {}).get("ServerApp", {})
    return {name: value for name, value in wanted.items() if name not in config.get("ServerApp", {})}


def sets_pings(preset: str) -> bool:
    """Whether *preset* says how websockets are pinged."""
    return "websocket_ping_interval" in PRESETS.get(preset, {}).get("ServerApp", {})
