"""Removing folders, and control groups; standard library only, since the supervisor does it too."""

from __future__ import annotations

import contextlib
import os
import time

ROUNDS = 50
PAUSE = 0.02


def remove_tree(folder: str) -> None:
    """Remove *folder*, also what may not be written to; no link is followed.

    Raises OSError where that fails, as when somebody still writes there. One that is not there is no error.
    """
    found = []
    folders = [folder]
    while folders:
        current = folders.pop()
        with contextlib.suppress(FileNotFoundError):
            os.chmod(current, 0o700)
            found.append(current)
            with os.scandir(current) as listing:
                rows = list(listing)
            for row in rows:
                if row.is_dir(follow_symlinks=False):
                    folders.append(row.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(row.path)
    for current in reversed(found):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(current)


def remove_groups(folder: str, home: str) -> None:
    """Remove the control group *folder* with those below it; the processes in them go to the group *home*.

    Raises OSError where that fails. One that is not there is no error.
    """
    groups = [current for current, _, _ in os.walk(folder, topdown=False)]
    for attempt in range(ROUNDS):
        for group in list(groups):
            _empty_group(group, home)
            with contextlib.suppress(OSError):  # what has just ended may be in it for a moment
                _remove_group(group)
                groups.remove(group)
        if not groups:
            return
        if attempt:
            time.sleep(PAUSE)
    _remove_group(groups[0])


def _remove_group(group: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(group)  # its files are no files, and go with it


def _empty_group(group: str, home: str) -> None:
    with contextlib.suppress(OSError), open(f"{group}/cgroup.procs") as procs:
        for pid in procs.read().split():
            with contextlib.suppress(OSError), open(f"{home}/cgroup.procs", "w") as there:
                there.write(pid)
