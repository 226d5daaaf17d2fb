"""Memory that large outputs leave behind is given back, and nobody looks where there is nothing to give back."""

from __future__ import annotations

from jupyter_kernelpool.tidy import WORTH, Tidier, read_resident

PIECE = 2048  # bytes; more than Python keeps in arenas of its own


async def test_what_lies_free_between_what_is_kept_is_given_back() -> None:
    pieces = [bytes(PIECE) for _ in range(20_000)]
    kept = pieces[::50]
    del pieces
    before = read_resident()
    await Tidier().go()
    assert before - read_resident() > 20 << 20
    assert len(kept) == 400


async def test_there_is_work_only_once_more_has_come_than_the_last_time_left() -> None:
    tidier = Tidier()
    assert tidier.has_work
    await tidier.go()
    assert not tidier.has_work
    more = bytearray(b"x") * (2 * WORTH)
    assert tidier.has_work
    await tidier.go()
    assert not tidier.has_work
    del more
