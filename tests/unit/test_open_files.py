"""Open files across a fork: what is closed behind the back of whoever opened it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jupyter_kernelpool.kernelside.files import close_all_of


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("deleted", [False, True], ids=["there", "deleted meanwhile"])
def test_every_descriptor_of_a_file_is_closed_and_no_other(tmp_path: Path, deleted: bool) -> None:
    path, other = tmp_path / "history.sqlite-journal", tmp_path / "history.sqlite"
    (tmp_path / "link").symlink_to(tmp_path)
    fds = [os.open(path, os.O_CREAT | os.O_RDWR), os.open(path, os.O_RDONLY)]
    kept = os.open(other, os.O_CREAT | os.O_RDWR)
    if deleted:
        path.unlink()
    close_all_of(str(tmp_path / "link" / path.name))
    try:
        assert [is_open(fd) for fd in (*fds, kept)] == [False, False, True]
    finally:
        os.close(kept)
