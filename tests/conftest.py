"""Fixtures for all tests: `jp_*` are Jupyter's; `async def` tests run on `jp_asyncio_loop`."""

from typing import Any

pytest_plugins = ["pytest_jupyter.jupyter_server"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show why a test had to be run again, too: `--reruns` keeps that to itself."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"again: {report.nodeid}")
        terminalreporter.line(report.longreprtext)
