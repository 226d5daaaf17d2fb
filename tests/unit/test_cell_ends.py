"""What the answer to a cell says of its end."""

from __future__ import annotations

import json

import pytest

from jupyter_kernelpool.cell_ends import BRIEF, CellEnd, read_end

HEADER = {"msg_id": "cell"}


def parts_of(content, *, seconds=None):
    metadata = {} if seconds is None else {"started": "2026-11-27T10:00:00.100000Z"}
    header = {"date": f"2026-11-27T10:00:{0.1 + (seconds or 0.0):09.6f}Z"}
    return [b"", *(json.dumps(part).encode() for part in (header, HEADER, metadata, content))]


@pytest.mark.parametrize("seconds, brief", [(0.0, True), (BRIEF * 0.9, True), (BRIEF * 1.1, False), (3.0, False)])
def test_cell_is_brief_by_its_kernels_own_clock(seconds, brief):
    assert read_end(parts_of({"status": "ok"}, seconds=seconds), json.loads, HEADER) == CellEnd(HEADER, brief)


def test_cell_of_a_kernel_that_does_not_say_when_it_began_may_have_run_long():
    assert not read_end(parts_of({"status": "ok"}), json.loads, HEADER).brief


@pytest.mark.parametrize(
    "ename, evalue, refused",
    [
        ("OSError", "[Errno 24] Too many open files: '/dev/null'", "open_files"),
        ("OSError", "[Errno 24] Zu viele offene Dateien", "open_files"),
        ("BlockingIOError", "[Errno 11] Resource temporarily unavailable", "processes"),
        ("RuntimeError", "can't start new thread", "processes"),
        ("BlockingIOError", "[Errno 115] Operation now in progress", None),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'x'", None),
        ("ValueError", "can't start new thread", None),
        ("KeyboardInterrupt", "", None),
    ],
)
def test_error_of_the_system_names_the_limit(ename, evalue, refused):
    content = {"status": "error", "ename": ename, "evalue": evalue}
    assert read_end(parts_of(content, seconds=0.0), json.loads, HEADER) == CellEnd(HEADER, True, refused)


def test_what_is_no_answer_is_refused():
    with pytest.raises((KeyError, TypeError, IndexError)):
        read_end([b"", b"{}"], json.loads, HEADER)
