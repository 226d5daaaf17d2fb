"""`python -m benchmarks.chaos`, or `./dev bench chaos`: run it, write JSON, page and the server's log."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.report import make_page
from benchmarks.chaos.run import Plan, run_chaos
from benchmarks.results import RESULTS

EXAMPLES = """
examples:
  ./dev bench chaos                                    30 minutes, 50 kernels, 20 clients
  ./dev bench chaos --minutes 3 --kernels 8 --clients 4
                                                       tries the harness; slopes are shown, and not judged
  ./dev bench chaos --option=--KernelPool.warm=3       another server

Exits with 1 if an execution was lost, code ran twice, something grows or was left, or a client saw a promise broken.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _make_parser().parse_args(arguments)
    plan = Plan(
        options.minutes, options.kernels, options.clients, options.every, options.patience,
        options.seed or secrets.randbelow(1 << 31), tuple(options.option),
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        run, slopes, verdict = asyncio.run(_run(plan, options.out))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("stopped")
        return 130
    page = make_page(run, slopes, verdict)
    (options.out / "chaos.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (options.out / "chaos.md").write_text(page, encoding="utf-8")
    print(page)
    _say(f"written: {options.out}/chaos.json, chaos.md, server.log")
    return 0 if verdict.good else 1


async def _run(plan: Plan, out: Path) -> Any:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_chaos(plan, out, _say)


def _say(text: str) -> None:
    print(f"[chaos {time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks chaos",
        description="Random faults at a steady load: nothing is lost without a word, nothing leaks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="how long (default: 30)")
    parser.add_argument("--kernels", type=int, default=50, metavar="N", help="kernels kept alive (default: 50)")
    parser.add_argument("--clients", type=int, default=20, metavar="N", help="clients that work (default: 20)")
    parser.add_argument("--every", type=float, default=2.5, metavar="S", help="seconds between faults (default: 2.5)")
    parser.add_argument(
        "--patience", type=float, default=120.0, metavar="S", help="seconds until a cell counts as lost (default: 120)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the choices of an earlier run (default: new ones)")
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="for the server; repeatable")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=RESULTS / "chaos",
        help="for the report (benchmarks/results/chaos)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
