"""Confines this process, and with it all that it starts or forks, before anything of the kernel's runs.

First thing in `launch.py`, while the process has one thread; and a script of its own, for kernels that are not
ours: `python confine.py '<order as JSON>' COMMAND…` confines itself and becomes COMMAND; without one it only tells
whether it could: exit status 0, or `FAILED` and the reason on stderr. Standard library only.

An order has

- `network`: a network namespace of its own, in which there is a loopback interface and nothing else;
- `hidden`: folders that are empty here, in a mount namespace of its own; `shown`: files below them that are kept;
- `writable`: the folders below which alone files can be written, made, renamed and removed (Landlock), or null;
- `temporary`: one of these folders, which is made where it is not there;
- `prefixed`: another program stands between the server and this process;
- `deaf`: SIGINT is ignored, which is handed on: for what stands between the server and a kernel.

Namespaces need a user namespace, in which this user is who they were. What root keeps of its rights there concerns
files; all else would let it leave. See namespaces(7), landlock(7), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any

FAILED = 78  # EX_CONFIG

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_SLAVE = 2, 4, 16384, 1 << 19
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
INTERFACE = struct.Struct("16sH14x")  # struct ifreq: name and flags
CAPABILITY_VERSION = 0x20080522
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID: what root needs to use the files of others that its namespace knows.
KEPT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4

# The same numbers on every architecture but alpha.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
RULESET, RULE = struct.Struct("=Q"), struct.Struct("=Qi")
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
# Removing and making entries (4 to 12), moving them elsewhere (13): rights to a folder only.
IN_FOLDERS = sum(1 << bit for bit in range(4, 14))


_tell = -1  # a pipe to the process that stands between a prefix and this one
_hidden: list[str] = []  # the folders that are empty here, each with a slash at its end


class CannotConfine(Exception):
    """What was asked for can't be held here; the text says why, and what would be needed."""


def confine(order: dict[str, Any]) -> None:
    """Carry *order* out; raises `CannotConfine`, and the process is then not to go on."""
    if order.get("deaf"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    network, hidden, writable = order.get("network"), order.get("hidden") or [], order.get("writable")
    if writable is not None:
        make_ipython_folder()
        if order.get("temporary"):  # where a launch_prefix has put another folder over /tmp
            os.makedirs(order["temporary"], 0o700, exist_ok=True)
    if network or hidden:
        enter_namespaces((CLONE_NEWNET if network else 0) | (CLONE_NEWNS if hidden else 0))
    if network:
        raise_loopback()
    if hidden:
        hide(hidden, order.get("shown") or [])
    if network or hidden:
        drop_capabilities()
    if network or hidden or writable is not None:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if writable is not None:
        write_only_below(writable)


# -- namespaces -------------------------------------------------------------------------------------


def enter_namespaces(kinds: int) -> None:
    """Enter a user namespace with this user in it, and namespaces of *kinds* that it owns."""
    ready, entered = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(entered)
        os._exit(_map_users(os.getppid(), ready))
    os.close(ready)
    try:
        call("unshare", CLONE_NEWUSER | kinds)
    except OSError as error:
        os.close(entered)
        os.waitpid(mapper, 0)
        raise CannotConfine(
            f"user namespaces can't be used here ({error.strerror}): allow them (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns; in a container its "
            "seccomp profile), or have a launch_prefix do it"
        ) from error
    os.write(entered, b"1")
    os.close(entered)
    _, status = os.waitpid(mapper, 0)
    if status:
        raise CannotConfine("the user namespace could not be given its user")


def _map_users(pid: int, ready: int) -> int:
    """In a process outside: once *pid* is in its namespace, give it the ids it had, as many as may be."""
    if os.read(ready, 1) != b"1":
        return 0
    for single in (False, True):
        with contextlib.suppress(OSError):
            if single:
                _write(f"/proc/{pid}/setgroups", "deny")
            for kind, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
                _write(f"/proc/{pid}/{kind}", f"{own} {own} 1" if single else _all_ids(kind))
            return 0
    return 1


def _all_ids(kind: str) -> str:
    """Every id that there is outside, as itself; only root may give these."""
    with open(f"/proc/self/{kind}") as file:
        ranges = [line.split() for line in file]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def _write(path: str, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def raise_loopback() -> None:
    """Switch the loopback interface on: it is off in a new namespace, and kernels use it among their own parts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = INTERFACE.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, INTERFACE.pack(b"lo", 0)))
        fcntl.ioctl(sock, SIOCSIFFLAGS, INTERFACE.pack(name, flags | IFF_UP))


def hide(folders: Iterable[str], shown: Iterable[str]) -> None:
    """Put an empty folder, in memory, over each of *folders*; the files *shown* are copied to where they were."""
    kept = {}
    for path in shown:
        with open(path, "rb") as file:
            kept[path] = file.read()
    call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    for folder in folders:
        if os.path.isdir(folder):
            call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=700,size=16m")
            _hidden.append(os.path.join(os.path.realpath(folder), ""))
    for path, content in kept.items():
        show(path, content)


def show(path: str, content: bytes) -> None:
    """Have *content* found at *path*, where that is in a folder that is hidden from this process."""
    if os.path.realpath(path).startswith(tuple(_hidden)):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)


def drop_capabilities() -> None:
    """Give up the rights over the new namespaces, for good; those over files that root had stay."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    kept = KEPT_CAPABILITIES if os.geteuid() == 0 else 0
    for number in range(64):
        if not kept >> number & 1:
            try:
                call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
            except OSError:
                break  # there are no more
    low = kept & 0xFFFFFFFF
    call("capset", header, struct.pack("=6I", low, low, 0, 0, 0, 0))


# -- files ------------------------------------------------------------------------------------------


def landlock_version() -> int:
    """The version of Landlock that this system has; 0 for none."""
    try:
        return syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except (OSError, AttributeError):
        return 0


def write_only_below(folders: Iterable[str]) -> None:
    """Have every attempt to change files elsewhere fail with `PermissionError`; reading stays as it is."""
    handled = WRITE_FILE | TRUNCATE | IN_FOLDERS
    try:
        ruleset = syscall(LANDLOCK_CREATE_RULESET, RULESET.pack(handled), RULESET.size, 0)
    except OSError as error:
        raise CannotConfine(f"writable: Landlock can't be used here ({error.strerror})") from error
    try:
        for path in folders:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise CannotConfine(f"writable: {path}: {error.strerror}") from error
            allowed = handled if os.path.isdir(path) else WRITE_FILE | TRUNCATE
            syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, RULE.pack(allowed, place), 0)
            os.close(place)
        syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def make_ipython_folder() -> None:
    """Make the folders of IPython's profile, which it makes itself where it may, and can't start without."""
    base = os.path.expanduser(os.environ.get("IPYTHONDIR") or "~/.ipython")
    for name in ("db", "log", "pid", "security", "startup"):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.join(base, "profile_default", name), 0o700, exist_ok=True)


# -- the operating system ---------------------------------------------------------------------------


def call(name: str, *arguments: Any) -> int:
    """Call the C library's *name*; raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(getattr(libc, name)(*converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: Any) -> int:
    """Call the system's *number*; raises `OSError`."""
    return call("syscall", number, *arguments)


# -- the process itself -----------------------------------------------------------------------------


def stand_alone(owner: int) -> None:
    """Go on as a child of *owner* (the subreaper) that leads a session of its own; for a process behind a prefix.

    What stands between stays until `let_prefix_end`. Raises `CannotConfine`, also in the new process only, where the
    prefix does not let it become *owner*'s.
    """
    global _tell
    told, _tell = os.pipe()
    between = os.fork()
    if between:
        os.close(_tell)
        os.waitpid(between, 0)
        os._exit(0 if os.read(told, 1) else 1)
    if os.fork():
        os._exit(0)
    os.close(told)
    os.setsid()
    deadline = time.monotonic() + 5.0
    while os.getppid() not in (owner, 0, 1) and time.monotonic() < deadline:
        time.sleep(0.001)  # until the one between has ended
    if os.getppid() != owner:
        raise CannotConfine(
            "its launch_prefix makes a namespace of process ids, or looks after processes itself; what is forked there "
            'dies with it. Leave that out (bwrap: --unshare-pid, --unshare-all), or set "launcher": "whole"'
        )


def let_prefix_end() -> None:
    """Have what stands between end, with status 0. It may end this process too: the server is to know what it must."""
    global _tell
    if _tell >= 0:
        os.write(_tell, b"1")
        os.close(_tell)
        _tell = -1


def failure(error: BaseException) -> str:
    """What is told of *error*."""
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return f"the sandbox can't be made: {error.strerror}"
    return str(error)


def main() -> None:
    order = json.loads(sys.argv[1])
    try:
        confine(order)
    except (CannotConfine, OSError) as error:
        sys.stderr.write(failure(error) + "\n")
        sys.exit(FAILED)
    if sys.argv[2:]:
        if order.get("prefixed"):
            os.environ.pop("JPY_PARENT_PID", None)  # its parent is another, and a kernel ends when that is not so
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (the kernelspec's command)


if __name__ == "__main__":
    main()
