"""What a server costs at one moment, read from /proc: its processes, open files, memory."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

MIB = 1 << 20


def belongs(pid: int, runtime: Path) -> bool:
    """Whether *pid* began with *runtime* in its environment: it is the server with that folder, or below it."""
    with suppress(OSError):
        return f"JUPYTER_RUNTIME_DIR={runtime}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def find_processes(runtime: Path) -> list[int]:
    """Every process of the server with that folder, orphans too; the server itself is one."""
    return [pid for pid in psutil.pids() if belongs(pid, runtime)]


def describe_processes(runtime: Path) -> list[str]:
    """A line for each: number, parent, state, age, threads, what it waits for, its first arguments."""
    lines = []
    for pid in find_processes(runtime):
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            waits = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")
            lines.append(
                f"pid {pid}, of {process.ppid()}, {process.status()}, {time.time() - process.create_time():.0f} s old, "
                f"{process.num_threads()} threads, {waits}: {' '.join(process.cmdline()[1:4])[:120]}"
            )
    return lines


def count_fds(pid: int) -> int:
    """Open files of *pid*, but for the pidfds of processes that live: the supervisor has one for each cold kernel."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            watches = "pidfd" in str(fd.readlink())
            found += not (watches and watched(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text(encoding="ascii")) > 0)
    return found


def watched(info: str) -> int:
    """The process of a pidfd, from what /proc says of it; -1 if it has ended."""
    return int(next((line.split()[1] for line in info.splitlines() if line.startswith("Pid:")), -1))


def sample(server: int, supervisor: int | None, runtime: Path) -> dict[str, float]:
    """The figures now; what can't be read is left out."""
    below = set(find_processes(runtime)) - {server}
    with suppress(psutil.Error):
        below |= {child.pid for child in psutil.Process(server).children(recursive=True)}  # zombies have no environment
    found: dict[str, float] = {"processes": len(below)}
    for name, pid in (("server", server), ("supervisor", supervisor)):
        with suppress(psutil.Error, OSError):
            if pid:
                process = psutil.Process(pid)
                memory = process.memory_full_info()
                found |= {
                    f"{name}_fds": count_fds(pid),
                    f"{name}_rss": memory.rss / MIB,
                    f"{name}_pss": memory.pss / MIB,
                    f"{name}_threads": process.num_threads(),
                }
    return found


def find_files(runtime: Path) -> list[Path]:
    """Connection files and sockets of kernels, which a server that stopped leaves none of."""
    return sorted(path for path in runtime.iterdir() if path.name.startswith("kernel"))
