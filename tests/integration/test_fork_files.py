"""Forks with a copy of the working directory for each: what is in it, and how long it is there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server, eventually, gone
from .test_clients import browser
from .test_forking import API, checkpoint, fork, post

pytestmark = pytest.mark.integration

WHERE = "import os; print(os.getcwd())"


def copies(server: Server) -> set[str]:
    """The folders of copies that there are."""
    return {str(path) for path in server.runtime.glob("kernelpool-copy-*")}


def kernel_in_root(server: Server) -> str:
    """A kernel that works in the server's root folder."""
    server.wait_warm(1)
    return str(server.start_session("notebook.ipynb")["kernel"]["id"])


@pytest.fixture
def kernel(kp_server: Server, tmp_path: Path) -> Any:
    """A kernel that works in a folder with a file in it; in the end all kernels go, and all copies with them."""
    kp_server.wait_warm(1)
    started = kp_server.start_kernel()
    (tmp_path / "data.txt").write_text("first\nsecond\nthird\n")
    kp_server.run(started, f"import os; os.chdir({str(tmp_path)!r})")
    yield started
    for each in kp_server.call("/api/kernels")[1]:
        kp_server.call(f"/api/kernels/{each['id']}", "DELETE")
    eventually(lambda: not copies(kp_server), "no copy is left")


def told(manifest: Any, kind: str) -> list[str]:
    return [each["what"] for each in manifest["warnings"] if each["kind"] == kind]


def test_fork_works_in_a_copy_of_its_own(kp_server: Server, kernel: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.bin").write_bytes(os.urandom(300_000))
    kp_server.run(kernel, "reading = open('data.txt'); reading.readline(); log = open('log', 'a'); log.write('both ')")
    reply = post(kp_server, f"/kernels/{kernel}/fork", {"files": "copy"})
    (model,) = reply["kernels"]
    forked, folder = model["id"], model["folder"]
    copied = reply["manifest"]["copied"]
    assert (copied["from"], copied["to"], copied["files"]) == (str(tmp_path), [folder], 3)
    assert copied["bytes"] >= 300_000
    assert 0 <= copied["reflinked"] <= 3
    assert told(reply["manifest"], "folder") == [f"the working directory is a copy of {tmp_path}"]
    assert copies(kp_server) == {folder}
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert (Path(folder) / "sub" / "deep.bin").read_bytes() == (tmp_path / "sub" / "deep.bin").read_bytes()

    assert kp_server.run(forked, WHERE) == folder
    assert kp_server.run(forked, "print(reading.readline())") == "second"
    kp_server.run(forked, "log.write('fork'); log.close(); open('data.txt', 'w').write('changed'); os.mkdir('new')")
    assert kp_server.run(kernel, "print(os.getcwd())") == str(tmp_path)
    assert kp_server.run(kernel, "log.write('parent'); log.close(); print(reading.readline())") == "second"
    assert (tmp_path / "log").read_text() == "both parent"
    assert (Path(folder) / "log").read_text() == "both fork"
    assert (tmp_path / "data.txt").read_text() == "first\nsecond\nthird\n"
    assert not (tmp_path / "new").exists()


def test_shared_is_as_before(kp_server: Server, kernel: str, tmp_path: Path) -> None:
    reply = post(kp_server, f"/kernels/{kernel}/fork", {"files": "shared"})
    assert reply["kernels"][0]["folder"] is None
    assert "copied" not in reply["manifest"]
    assert kp_server.run(reply["kernels"][0]["id"], WHERE) == str(tmp_path)
    assert copies(kp_server) == set()


def test_each_of_several_has_its_own_and_what_they_were_made_from_goes(
    kp_server: Server, kernel: str, tmp_path: Path
) -> None:
    kp_server.run(kernel, "reading = open('data.txt'); reading.readline()")
    reply = post(kp_server, f"/kernels/{kernel}/fork", {"count": 3, "files": "copy"})
    folders = {each["id"]: each["folder"] for each in reply["kernels"]}
    assert reply["manifest"]["copied"]["from"] == str(tmp_path)
    assert reply["manifest"]["copied"]["to"] == list(folders.values())
    assert told(reply["manifest"], "files_of_now") == []
    assert len(set(folders.values())) == 3
    for number, (each, folder) in enumerate(folders.items()):
        assert kp_server.run(each, f"open('data.txt', 'a').write('{number}'); {WHERE}") == folder
        assert kp_server.run(each, "print(reading.readline())") == "second", "positions are apart"
    texts = {(Path(folder) / "data.txt").read_text() for folder in folders.values()}
    assert texts == {f"first\nsecond\nthird\n{number}" for number in range(3)}
    eventually(lambda: copies(kp_server) == set(folders.values()), "the copy between is gone")
    assert (tmp_path / "data.txt").read_text() == "first\nsecond\nthird\n"


def test_fork_of_a_checkpoint_gets_the_files_of_now_and_says_so(kp_server: Server, kernel: str, tmp_path: Path) -> None:
    kp_server.run(kernel, "state = 'kept'")
    kept = checkpoint(kp_server, kernel)
    (tmp_path / "data.txt").write_text("later")
    reply = post(kp_server, f"/checkpoints/{kept}/fork", {"files": "copy"})
    (model,) = reply["kernels"]
    assert told(reply["manifest"], "files_of_now") != []
    assert reply["manifest"]["copied"]["from"] == str(tmp_path)
    assert kp_server.run(model["id"], "print(state, open('data.txt').read())") == "kept later"
    assert kp_server.run(model["id"], WHERE) == model["folder"]
    assert kp_server.call(f"{API}/checkpoints/{kept}", "DELETE")[0] == 204
    assert copies(kp_server) == {model["folder"]}


def test_restart_of_the_fork_begins_in_its_copy(kp_server: Server, kernel: str) -> None:
    (model,) = post(kp_server, f"/kernels/{kernel}/fork", {"files": "copy"})["kernels"]
    kp_server.run(model["id"], "open('own', 'w').write('work')")
    kp_server.wait_warm(1)
    assert kp_server.call(f"/api/kernels/{model['id']}/restart", "POST")[0] == 200
    assert kp_server.run(kp_server.client(model["id"]), f"print(open('own').read()); {WHERE}").split() == [
        "work", model["folder"],
    ]  # fmt: skip


def test_copy_lives_as_long_as_anybody_who_works_in_it(kp_server: Server, kernel: str) -> None:
    (model,) = post(kp_server, f"/kernels/{kernel}/fork", {"files": "copy"})["kernels"]
    first, folder = model["id"], model["folder"]
    (second,) = fork(kp_server, first)
    kept = checkpoint(kp_server, second)
    (third,) = [each["id"] for each in post(kp_server, f"/checkpoints/{kept}/fork")["kernels"]]
    (own,) = post(kp_server, f"/kernels/{first}/fork", {"files": "copy"})["kernels"]
    assert copies(kp_server) == {folder, own["folder"]}
    with browser(kp_server, kernel) as tab:
        post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        assert tab.execute(WHERE) == folder
    for end in (first, second):
        assert kp_server.call(f"/api/kernels/{end}", "DELETE")[0] == 204
        assert kp_server.run(third, "print(open('data.txt').readline())") == "first"
    assert kp_server.call(f"{API}/checkpoints/{kept}")[0] == 404, "it went with its kernel"
    assert kp_server.call(f"/api/kernels/{own['id']}", "DELETE")[0] == 204
    eventually(lambda: copies(kp_server) == {folder}, "the copy of the one that ended is gone")
    assert kp_server.call(f"/api/kernels/{third}", "DELETE")[0] == 204
    assert kp_server.run(kernel, f"open('data.txt').close(); {WHERE}") == folder
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: copies(kp_server) == set(), "the last one has let go")


def test_what_is_too_large_is_refused_before_anything_is_copied(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_copied_bytes=100000", "--KernelPool.max_copied_files=50")
    kernel = kernel_in_root(server)
    (server.root / "big").write_bytes(os.urandom(200_000))
    refused = post(server, f"/kernels/{kernel}/fork", {"files": "copy"}, 413)
    assert (refused["code"], refused["limit"]) == ("too_large", 100_000)
    assert refused["bytes"] >= 200_000
    assert "100000" in refused["message"]
    assert "KernelPool.max_copied_bytes" in refused["hint"]
    kept = checkpoint(server, kernel)
    assert post(server, f"/checkpoints/{kept}/fork", {"files": "copy"}, 413)["limit"] == 100_000
    assert post(server, f"/kernels/{kernel}/fork", {"count": 2, "files": "copy"}, 413)["limit"] == 100_000
    (server.root / "big").unlink()
    for number in range(51):
        (server.root / f"file{number}").touch()
    assert post(server, f"/kernels/{kernel}/fork", {"files": "copy"}, 413)["limit"] == 50
    (server.root / "file0").unlink()
    assert server.run(kernel, "print('goes on')") == "goes on"
    (model,) = post(server, f"/kernels/{kernel}/fork", {"files": "copy"})["kernels"]
    assert len(list(Path(model["folder"]).iterdir())) == 50
    eventually(lambda: copies(server) == {model["folder"]}, "the refused ones left nothing")


def test_copies_are_made_where_the_configuration_says(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    server = kp_start(f"--KernelPool.copies_dir={tmp_path / 'copies'}")
    kernel = kernel_in_root(server)
    (model,) = post(server, f"/kernels/{kernel}/fork", {"files": "copy"})["kernels"]
    assert Path(model["folder"]).parent == tmp_path / "copies"
    assert server.run(model["id"], WHERE) == model["folder"]
    (tmp_path / "file").touch()
    assert server.call(f"/api/kernels/{model['id']}", "DELETE")[0] == 204
    eventually(lambda: not list((tmp_path / "copies").iterdir()), "it is removed there")


def test_where_no_copy_can_be_made_says_so(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = kp_start(f"--KernelPool.copies_dir={tmp_path / 'file' / 'copies'}")
    kernel = kernel_in_root(server)
    refused = post(server, f"/kernels/{kernel}/fork", {"files": "copy"}, 507)
    assert refused["code"] == "copy_failed"
    assert "copies_dir" in refused["hint"]
    server.run(kernel, "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')")
    assert post(server, f"/kernels/{kernel}/fork", {"files": "copy"}, 507)["code"] == "copy_failed"
    assert server.run(kernel, "print('goes on')") == "goes on"


def test_folder_that_is_gone_can_not_be_copied(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')")
    refused = post(kp_server, f"/kernels/{kernel}/fork", {"files": "copy"}, 501)
    assert (refused["code"], refused["reason"]) == ("cannot_fork", "no_folder")
    assert kp_server.run(kernel, "print('goes on')") == "goes on"


def test_copies_inside_the_folder_that_is_copied_are_left_out(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    """Where the server's root holds Jupyter's runtime folder, a copy must not hold itself, nor the others."""
    root = tmp_path / "server0" / "root"
    root.mkdir(parents=True)
    server = kp_start(JUPYTER_RUNTIME_DIR=str(root / "runtime"))
    kernel = kernel_in_root(server)
    (root / "data").write_text("x")
    for _ in range(2):
        (model,) = post(server, f"/kernels/{kernel}/fork", {"files": "copy"})["kernels"]
        assert (Path(model["folder"]) / "data").read_text() == "x"
        assert not list((Path(model["folder"]) / "runtime").glob("kernelpool-copy-*"))
    assert "runtime" in server.run(kernel, "import os; print(os.listdir())")
    (inner,) = post(server, f"/kernels/{model['id']}/fork", {"files": "copy"})["kernels"]
    assert (Path(inner["folder"]) / "data").read_text() == "x", "a copy can be copied"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_copy_is_left_when_the_server_ends(kp_start: Callable[..., Server], how: int) -> None:
    server = kp_start()
    kernel = kernel_in_root(server)
    server.run(kernel, "import os; os.mkdir('closed'); open('closed/file', 'w').close(); os.chmod('closed', 0o500)")
    post(server, f"/kernels/{kernel}/fork", {"count": 2, "files": "copy"})
    assert len(copies(server)) >= 2
    ours = server.ours()
    assert server.process is not None
    server.process.send_signal(how)
    server.process.wait()
    eventually(lambda: gone(ours), "all ended")
    assert copies(server) == set()


def test_copying_may_outlast_the_timeout(kp_start: Callable[..., Server]) -> None:
    """That is about a cell that runs: the kernel rests, and copies for longer than that."""
    server = kp_start()
    kernel = kernel_in_root(server)
    server.run(kernel, "for n in range(8000): open(f'f{n}', 'w').write('x')")
    (model,) = post(server, f"/kernels/{kernel}/fork", {"files": "copy", "timeout": 0.02})["kernels"]
    assert len(list(Path(model["folder"]).iterdir())) == 8000
