"""What a kernel copies of its working directory, and what not; on real folders."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_kernelpool.kernelside import copying
from jupyter_kernelpool.kernelside.hazards import Refused
from jupyter_kernelpool.kernelside.removal import remove_tree

MANY = {"most_bytes": 10**9, "most_entries": 10**6}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working directory."""
    folder = tmp_path / "source"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / f"{copying.PREFIX}one"
    folder.mkdir(0o700)
    yield folder
    remove_tree(str(folder))
    assert not folder.exists()


@pytest.fixture
def wanted() -> Iterator[int]:
    """A socket whose other end is open."""
    ours, its = socket.socketpair()
    with ours, its:
        yield its.fileno()


def copy(target: Path, wanted: int, **bounds: int) -> copying.Copied:
    return copying.copy_working_folder({"to": str(target), **MANY, **bounds}, wanted)


def test_content_modes_and_times_are_kept(source: Path, target: Path, wanted: int) -> None:
    (source / "sub" / "empty").mkdir(parents=True)
    script = source / "sub" / "script.sh"
    script.write_bytes(os.urandom(100_001))
    script.chmod(0o751)
    os.utime(script, ns=(1_000_000_007, 2_000_000_013))
    (source / "nothing").touch()
    (source / "sub").chmod(0o2555)
    os.utime(source / "sub", ns=(3_000_000_000, 4_000_000_000))
    told = copy(target, wanted)
    for name in ("sub", "sub/script.sh", "sub/empty", "nothing"):
        before, after = (source / name).lstat(), (target / name).lstat()
        assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns), name
    assert (target / "sub" / "script.sh").read_bytes() == script.read_bytes()
    assert (target / "sub" / "script.sh").lstat().st_ino != script.lstat().st_ino
    assert (told.source, told.files, told.size, told.left_out) == (str(source), 2, 100_001, {})
    assert 0 <= told.reflinked <= 1
    assert stat.S_IMODE(target.lstat().st_mode) == 0o700


def test_holes_stay_holes(source: Path, target: Path, wanted: int) -> None:
    with (source / "sparse").open("wb") as file:
        file.seek(50_000_000)
        file.write(b"in the middle")
        file.truncate(100_000_000)
    with (source / "hollow").open("wb") as file:
        file.truncate(10_000_000)
    told = copy(target, wanted, most_bytes=1_000_000)
    assert told.size < 1_000_000
    copied = target / "sparse"
    assert copied.stat().st_size == 100_000_000
    assert copied.stat().st_blocks * 512 < 1_000_000
    with copied.open("rb") as file:
        file.seek(50_000_000 - 2)
        assert file.read(17) == b"\0\0in the middle\0\0"
    assert (target / "hollow").stat().st_size == 10_000_000


@pytest.mark.parametrize("without", [(), ("copy_file_range",)], ids=["copy_file_range", "sendfile"])
def test_each_way_of_copying(
    source: Path, target: Path, wanted: int, without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without clones: those make the content at one stroke where the file system can."""
    monkeypatch.setattr(copying, "FICLONE", 0)
    monkeypatch.setattr(copying, "CHUNK", 1000)
    for name in without:
        monkeypatch.delattr(os, name)
    content = os.urandom(12_345)
    (source / "file").write_bytes(content)
    told = copy(target, wanted)
    assert (target / "file").read_bytes() == content
    assert (told.size, told.reflinked) == (12_345, 0)


def test_names_of_one_file_stay_names_of_one_file(source: Path, target: Path, wanted: int) -> None:
    (source / "one").write_bytes(b"x" * 5000)
    os.link(source / "one", source / "two")
    told = copy(target, wanted, most_bytes=8192)
    assert (target / "one").stat().st_ino == (target / "two").stat().st_ino
    assert told.size <= 8192


@pytest.mark.parametrize(
    "link, aim, becomes",
    [
        ("link", "file", "file"),
        ("sub/link", "../file", "../file"),
        ("link", "..file", "..file"),
        ("link", "nothing", "nothing"),
        ("link", "../beside", "{source}/../beside"),
        ("sub/link", "../../beside", "{source}/sub/../../beside"),
        ("link", "../source/file", "{target}/file"),
        ("link", "{source}/file", "{target}/file"),
        ("link", "{source}", "{target}"),
        ("link", "{alias}/sub", "{target}/sub"),
        ("link", "{source}x", "{source}x"),
        ("link", "/etc/hosts", "/etc/hosts"),
    ],
)
def test_links_are_copied_as_links_that_lead_to_the_copy_or_where_they_led(
    source: Path, target: Path, wanted: int, link: str, aim: str, becomes: str
) -> None:
    (source / "sub").mkdir()
    (source / "file").touch()
    (source.parent / "alias").symlink_to(source)
    words = {"source": source, "target": target, "alias": source.parent / "alias"}
    (source / link).symlink_to(aim.format(**words))
    copy(target, wanted)
    assert str((target / link).readlink()) == becomes.format(**words)


def test_link_to_a_folder_outside_is_not_followed(source: Path, target: Path, wanted: int) -> None:
    outside = source.parent / "outside"
    outside.mkdir()
    (outside / "huge").write_bytes(b"x" * 10_000)
    (source / "link").symlink_to(outside)
    told = copy(target, wanted, most_bytes=100)
    assert (told.files, (target / "link").is_symlink()) == (0, True)
    (target / "link" / "huge").write_bytes(b"")
    assert (outside / "huge").read_bytes() == b"", "it leads there, as before"


def test_what_is_no_file_is_named(source: Path, target: Path, wanted: int) -> None:
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("run.sock")
        told = copy(target, wanted)
    assert told.left_out == {"pipe": ["pipe"], "socket": ["run.sock"]}
    assert list(target.iterdir()) == []


def test_what_can_not_be_read_is_named_and_the_rest_is_copied(source: Path, target: Path, wanted: int) -> None:
    """As an ordinary user: the superuser may read all."""
    (source / "closed").mkdir()
    (source / "closed" / "inside").touch()
    (source / "secret").write_text("x")
    (source / "open").write_text("y")
    for name in ("closed", "secret"):
        (source / name).chmod(0)
    try:
        with ordinary_user(source, target):
            told = copy(target, wanted)
    finally:
        (source / "closed").chmod(0o700)
    assert told.left_out == {"folder that can't be read": ["closed"], "file that can't be read": ["secret"]}
    assert (target / "open").read_text() == "y"
    assert (target / "closed").stat().st_mode & 0o777 == 0


@contextlib.contextmanager
def ordinary_user(*folders: Path) -> Iterator[None]:
    """Be nobody for a moment, if this is the superuser, with *folders* and what is in them one's own."""
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    above = {parent: parent.stat().st_mode for folder in folders for parent in folder.parents}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, nobody, nobody)
    for parent, mode in above.items():
        parent.chmod(mode | 0o111)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in above.items():
            parent.chmod(mode)


@pytest.mark.parametrize(
    "bounds, facts",
    [
        ({"most_bytes": 8191}, {"bytes": 8192, "limit": 8191}),
        ({"most_entries": 2}, {"entries": 3, "limit": 2}),
        ({"most_entries": 0}, {"entries": 1, "limit": 0}),
    ],
)
def test_what_is_too_large_is_refused_and_nothing_is_copied(
    source: Path, target: Path, wanted: int, bounds: dict[str, int], facts: dict[str, Any]
) -> None:
    (source / "sub").mkdir()
    for name in ("one", "sub/two"):
        (source / name).write_bytes(os.urandom(4096))
    os.sync()
    with pytest.raises(Refused) as raised:
        copy(target, wanted, **bounds)
    assert (raised.value.code, raised.value.facts) == ("too_large", facts)
    assert str(source) in raised.value.reason
    assert str(facts["limit"]) in raised.value.reason
    assert list(target.iterdir()) == []


def test_just_as_much_as_is_allowed_is_copied(source: Path, target: Path, wanted: int) -> None:
    (source / "one").write_bytes(os.urandom(4096))
    os.sync()
    assert copy(target, wanted, most_bytes=4096, most_entries=1).files == 1


def test_folder_of_copies_inside_is_left_out(source: Path, wanted: int) -> None:
    runtime = source / "runtime"
    runtime.mkdir()
    for name in ("one", "other"):
        (runtime / f"{copying.PREFIX}{name}").mkdir()
    (runtime / "kept").touch()
    (source / f"{copying.PREFIX}mine").touch()
    target = runtime / f"{copying.PREFIX}one"
    copy(target, wanted)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        f"{copying.PREFIX}mine", "runtime", "runtime/kept",
    ]  # fmt: skip


def test_copying_stops_when_nobody_wants_it_any_more(source: Path, target: Path) -> None:
    (source / "file").touch()
    ours, its = socket.socketpair()
    ours.close()
    with its, pytest.raises(Refused) as raised:
        copy(target, its.fileno())
    assert raised.value.code == "cancelled"
    assert list(target.iterdir()) == []


def test_working_directory_that_is_gone_is_refused(source: Path, target: Path, wanted: int) -> None:
    source.rmdir()
    with pytest.raises(Refused) as raised:
        copy(target, wanted)
    assert raised.value.code == "no_folder"
    source.mkdir()


def test_target_that_is_gone_is_refused(source: Path, target: Path, wanted: int) -> None:
    (source / "file").touch()
    target.rmdir()
    with pytest.raises(Refused) as raised:
        copy(target, wanted)
    assert raised.value.code == "copy_failed"
    assert str(target) in raised.value.reason


def test_tree_is_removed_with_what_nobody_may_write_to_and_no_link_is_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (tree / "link").symlink_to(kept)
    (tree / "a" / "b").chmod(0)
    (tree / "a").chmod(0o500)
    with ordinary_user(tmp_path):
        remove_tree(str(tree))
        remove_tree(str(tree))
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "file").exists()
