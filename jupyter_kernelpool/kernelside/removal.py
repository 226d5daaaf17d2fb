"""Removing a folder with all that is in it; standard library only, since the supervisor does it too."""

from __future__ import annotations

import contextlib
import os


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
