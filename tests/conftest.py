"""Fixtures for all tests: `jp_*` are Jupyter's; `async def` tests run on `jp_asyncio_loop`."""

pytest_plugins = ["pytest_jupyter.jupyter_server"]
