"""Where on this machine the server may make control groups, and what it would take where it may not."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field

UNITS = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")  # cgroups that systemd manages
DELEGATED = ("user.delegate", "trusted.delegate")  # how systemd marks what it leaves to others; the former since 251
DELEGATE = "start the server with `systemd-run --user --scope -p Delegate=yes jupyter lab`"
WANTED = frozenset({"memory", "cpu", "pids"})
CHUNK = 1 << 16
HOME = "jupyter-kernelpool-server"


@dataclass(frozen=True)
class Mounts:
    """The cgroups of this process as folders: of version 2, and of version 1 by controller."""

    unified: str | None = None
    unified_top: str = ""  # where that hierarchy is mounted
    legacy: dict[str, str] = field(default_factory=dict)


def read_mounts(cgroup: str, mountinfo: str) -> Mounts:
    """From the texts of /proc/self/cgroup and /proc/self/mountinfo; see cgroups(7) and proc(5)."""
    paths = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    unified, top = None, ""
    legacy: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescaped(text) for text in before.split()[3:5])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" and unified is None:
            unified, top = _folder(point, root, paths.get("")), point
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(paths):
                folder = _folder(point, root, paths[controller])
                if folder is not None:
                    legacy.setdefault(controller, folder)
    return Mounts(unified, top, legacy)


@dataclass(frozen=True)
class Place:
    """A cgroup of version 2 below which groups can be made.

    *home* is where the server's own processes are, or with *moves* have to be moved first: only a cgroup without
    processes can share out memory and cores to others below it (cgroups(7), "no internal processes").
    """

    base: str
    home: str
    moves: bool
    controllers: frozenset[str]


def find_place(own: str, top: str, ours: Collection[int]) -> Place | str:
    """Where the server, which is in the cgroup *own* of the hierarchy at *top*, may make groups; else why not.

    *ours* are the pids of the server and all below it: nobody else's process is moved.
    """
    unit = _unit_of(own, top)
    if unit is not None and not _is_delegated(unit, top):
        return f"systemd manages {os.path.basename(unit)} itself: {DELEGATE}"
    why = ""
    for base in [own] if own in (top, unit) else [own, os.path.dirname(own)]:
        controllers = frozenset(readable(f"{base}/cgroup.controllers").split())
        if not controllers & WANTED:
            continue
        if not all(os.access(f"{base}/{name}", os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")):
            why = why or f"the server may not write to {base}: {DELEGATE}, or delegate that cgroup to its user"
            continue
        others = set() if is_root(base) else set(pids_in(base)) - set(ours)
        if others:
            names = ", ".join(sorted(f"{pid} ({_name_of(pid)})" for pid in others)[:3])
            why = f"other processes are in the server's cgroup: {names}; start the server in a cgroup of its own"
            continue
        moves = base == own and not is_root(base)
        return Place(base, f"{own}/{HOME}" if moves else own, moves, controllers)
    return why or "cgroup v2 has no controllers here"


def is_root(folder: str) -> bool:
    """Whether *folder* is the machine's topmost cgroup, which may have processes and groups alike."""
    return not os.path.exists(f"{folder}/cgroup.type")


def pids_in(folder: str) -> list[int]:
    """The processes in a cgroup; 0 stands for one of another container's. None where it is gone."""
    return [int(line) for line in readable(f"{folder}/cgroup.procs").split()]


def readable(path: str) -> str:
    """What is in a file; nothing where it is not there, or not for us."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of the time that a file object takes
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(descriptor, CHUNK):
            parts.append(part)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def read_table(path: str) -> dict[str, int]:
    """The numbers in a file of rows with a name and a number each; none where it is not there."""
    rows = (line.split() for line in readable(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _folder(point: str, root: str, path: str | None) -> str | None:
    if path is None or path.startswith("/.."):  # it is in none that this namespace shows
        return None
    inside = os.path.relpath(path, root)
    if inside.startswith(".."):
        return None
    return os.path.normpath(f"{point}/{inside}")


def _unit_of(own: str, top: str) -> str | None:
    """The nearest cgroup, *own* or above it, that has the name of a systemd unit."""
    while own != top:
        if own.endswith(UNITS):
            return own
        own = os.path.dirname(own)
    return None


def _is_delegated(unit: str, top: str) -> bool:
    """Whether systemd leaves what is below *unit* to whoever is in it.

    Where nothing above it is marked either, an old systemd's user manager may have delegated it without saying so.
    """
    if _is_marked(unit):
        return True
    above = os.path.dirname(unit)
    while above != top and not _is_marked(above):
        above = os.path.dirname(above)
    return above == top and os.geteuid() != 0


def _is_marked(folder: str) -> bool:
    for name in DELEGATED:
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _name_of(pid: int) -> str:
    return readable(f"/proc/{pid}/comm").strip() or "another container's"


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
