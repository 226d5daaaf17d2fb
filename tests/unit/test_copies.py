"""Copies of working directories: who keeps one, and that it goes with the last of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from jupyter_kernelpool.copies import PREFIX, Bounds, Copies, Holders
from jupyter_kernelpool.errors import CopyFailed
from jupyter_kernelpool.testing import FakeSupervision


def test_folder_is_needed_until_its_last_holder_lets_go() -> None:
    holders = Holders()
    holders.hold("fork", ["a"])
    holders.hold("fork of it", holders.of("fork"))
    holders.hold("restored", ["b"])
    holders.hold("restored", holders.of("fork"))
    assert holders.needed == {"a", "b"}
    assert holders.let_go("fork") == frozenset()
    assert holders.let_go("fork of it") == frozenset()
    assert holders.let_go("restored") == {"a", "b"}
    assert holders.needed == frozenset()


def test_who_holds_nothing_lets_go_of_nothing() -> None:
    holders = Holders()
    holders.hold("plain", holders.of("unknown"))
    assert holders.of("plain") == frozenset()
    assert holders.let_go("plain") == holders.let_go("unknown") == frozenset()


@pytest.fixture
def supervision() -> FakeSupervision:
    return FakeSupervision()


@pytest.fixture
def copies(supervision: FakeSupervision) -> Copies:
    return Copies(supervision, logging.getLogger("test"))


async def test_lent_folder_goes_unless_somebody_holds_it(
    copies: Copies, supervision: FakeSupervision, tmp_path: Path
) -> None:
    bounds = Bounds(str(tmp_path / "made"), 1, 1)
    async with copies.lent(bounds) as order:
        assert Path(order.to).name.startswith(PREFIX)
        assert Path(order.to).stat().st_mode & 0o777 == 0o700
        assert supervision._guarded == {order.to}, "the supervisor removes it if the server can't"
        (Path(order.to) / "file").touch()
        copies.hold("kernel", [order.to])
    async with copies.lent(bounds, later=True) as other:
        assert other.as_message() == {"to": other.to, "most_bytes": 1, "most_entries": 1, "later": True}
    with copies.kept(copies.of("kernel")):
        copies.let_go("kernel")
        await asyncio.wait_for(_until(lambda: not Path(other.to).exists()), 20)
        assert Path(order.to).exists()
    await copies.close()
    assert not Path(order.to).exists()
    assert supervision._guarded == set()


async def test_cancelled_while_the_folder_is_made(copies: Copies, tmp_path: Path) -> None:
    async def lend() -> None:
        async with copies.lent(Bounds(str(tmp_path), 1, 1)):
            await asyncio.sleep(60)

    for turns in (1, 2, 3, 30):
        task = asyncio.create_task(lend())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await copies.close()
        assert list(tmp_path.iterdir()) == []


async def test_place_that_can_not_be_made_is_named(copies: Copies, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CopyFailed, match="file/copies"):
        async with copies.lent(Bounds(str(tmp_path / "file" / "copies"), 1, 1)):
            pass
    (tmp_path / "file").unlink()
    await copies.close()


async def test_folder_that_is_still_written_to_is_removed_all_the_same(copies: Copies, tmp_path: Path) -> None:
    async with copies.lent(Bounds(str(tmp_path), 1, 1)) as order:
        pass
    for number in range(20):
        try:
            await asyncio.to_thread((Path(order.to) / f"late{number}").touch)
        except FileNotFoundError:
            break
    await copies.close()
    assert list(tmp_path.iterdir()) == []


async def _until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.01)
