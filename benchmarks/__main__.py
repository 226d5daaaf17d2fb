"""`python -m benchmarks`: measure, then write JSON, table and plot. `./dev bench` is the same."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import results as store
from benchmarks.chaos.__main__ import main as chaos
from benchmarks.figures import find_missed
from benchmarks.measures import LARGE, MEASURES
from benchmarks.report import make_page
from benchmarks.run import Run
from benchmarks.servers import VARIANTS

ROUNDS, QUICK_ROUNDS = 15, 3
EXAMPLES = """
examples:
  ./dev bench                          everything; updates table and plot in docs/ and README.md
  ./dev bench start restart            two measures; rows in benchmarks/results/partial.json
  ./dev bench fork_arrays_1            forks of a kernel with 1 GiB of arrays; --list has the other sizes
  ./dev bench --quick --out /tmp/b     everything, in small; table and plot to /tmp/b
  ./dev bench report benchmarks/results/latest.json
                                       make table and plot again from an earlier run
  ./dev bench start --assert           exit with 1 if a ratio is missed
  ./dev bench chaos --help             no measure: random faults at a steady load, for half an hour

Numbers count as ratios within one run, on a machine that does nothing else meanwhile.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 if a measure failed or a ratio was missed."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["report"]:
        return _report(arguments[1:])
    if arguments[:1] == ["chaos"]:
        return chaos(arguments[1:])
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.list:
        for name, measure in MEASURES.items():
            print(f"{name:16} {(measure.__doc__ or '').splitlines()[0]}")
        return 0
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"no measure {', '.join(unknown)}; there are: {', '.join(MEASURES)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    run = Run(
        options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        options.quick,
        options.variants,
    )
    names = choose(options.names, quick=options.quick)
    is_complete = names == list(MEASURES) and run.rounds >= ROUNDS
    is_complete = is_complete and not run.quick and not run.stand_ins
    path = options.json or store.PARTIAL
    try:
        measured = asyncio.run(_measure(run, names, path))
    except (KeyboardInterrupt, asyncio.CancelledError):
        run.say("stopped")
        return 130
    print(make_page(measured))
    failed = [name for name, found in measured["measures"].items() if found.get("error")]
    counts = is_complete and not failed
    if counts and not options.json:
        path = path.replace(store.COMPLETE)
    run.say(f"rows:  {path}")
    if counts or options.out:
        store.publish(measured, options.out, run.say)
    missed = find_missed(measured["measures"]) if options.assert_ratios else []
    for sentence in [f"failed: {name}" for name in failed] + [f"missed: {text}" for text in missed]:
        run.say(sentence)
    return 1 if failed or missed else 0


def choose(wanted: list[str], *, quick: bool) -> list[str]:
    """The measures to take, in their order: those that are *wanted*, else all but what is too large for a quick run."""
    return [name for name in MEASURES if name in wanted or not (wanted or (quick and name in LARGE))]


async def _measure(run: Run, names: list[str], path: Path) -> dict[str, Any]:
    """Take each measure; one that fails is noted and the others go on. Saves after each."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    measured = store.begin(run)
    for name in names:
        run.say(f"{name}: {(MEASURES[name].__doc__ or '').splitlines()[0]}")
        began = time.monotonic()
        try:
            store.add(measured, name, await MEASURES[name](run))
        except Exception as error:  # one bad measure must not cost the others
            run.say(traceback.format_exc())
            measured["measures"][name] = {
                "rows": [],
                "summary": {},
                "error": f"{type(error).__name__}: {error}",
            }
        store.save(measured, path)
        run.say(f"  {name} took {time.monotonic() - began:.0f} s")
    return measured


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description="Make table and plot again from a run's JSON.",
    )
    parser.add_argument("file", type=Path, help="the JSON of a run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write them there, not into docs/ and README.md")
    options = parser.parse_args(arguments)
    measured = store.load(options.file)
    print(make_page(measured))
    store.publish(measured, options.out, lambda text: print(text, file=sys.stderr))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure jupyter_kernelpool against stock Jupyter Server, from outside.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="measures to take (default: all; see --list)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds a measure (default: {ROUNDS})")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds, small bursts, small kernels: tries the harness",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where raw rows and summaries go")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="put table and plot there, not into docs/ and README.md",
    )
    parser.add_argument(
        "--assert",
        action="store_true",
        dest="assert_ratios",
        help="exit with 1 if a ratio is missed",
    )
    parser.add_argument("--list", action="store_true", help="list the measures and stop")
    # To work on the harness: `--variants ours=stock` runs a server of one variant in the place of
    # another.
    parser.add_argument("--variants", type=_read_stand_ins, default={}, help=argparse.SUPPRESS)
    return parser


def _read_stand_ins(text: str) -> dict[str, str]:
    """`ours=stock,ours+preload=stock`; a bare `stock` stands in for every other variant."""
    if text in VARIANTS:
        return {name: text for name in VARIANTS if name != text}
    pairs = dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)
    if not pairs or any(name not in VARIANTS for name in (*pairs, *pairs.values())):
        raise argparse.ArgumentTypeError(f"not NAME=NAME,… of {', '.join(VARIANTS)}")
    return pairs


if __name__ == "__main__":
    sys.exit(main())
