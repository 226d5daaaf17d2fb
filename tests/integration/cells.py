"""A cell, run by a client over ZeroMQ: what it prints."""

from __future__ import annotations

from typing import Any

from jupyter_client import BlockingKernelClient


def run_cell(client: BlockingKernelClient, code: str, timeout: float, **options: Any) -> tuple[dict[str, Any], str]:
    """The content of the reply to *code*, and what it printed or returned."""
    printed: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] == "execute_result":
            printed.append(content["data"]["text/plain"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=timeout, **options)
    return dict(reply["content"]), "".join(printed).strip()
