"""What a cell prints goes out in pieces: the stream that stands for stdout and stderr in our kernels.

ipykernel makes one message of all that is printed within 0.2 s, or in one go, however much that is; whoever reads it
has it in memory several times over. Here a print that would make more of it than a piece waits until what came before
is a message, as `print(…, flush=True)` does: in the thread that prints, so that order, parent headers and hooks are
ipykernel's, and an interrupt ends the print and leaves out the rest.

Only methods that streams have anyway are used. Facts about ipykernel were read in iostream.py of 6.29 and 7.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ipykernel import iostream

STOCK = "ipykernel.iostream.OutStream"
PIECE = 1 << 20  # bytes of text as UTF-8; JSON may make more of them (six of a control character's one)


class OutStream(iostream.OutStream):
    """ipykernel's, of which no message has more than `PIECE` bytes of text, or little more where threads print at once.

    What another thread prints may come between two pieces of one print.
    """

    _unsent = 0  # bytes at most, written since the last flush of ours

    def write(self, string: Any) -> int | None:  # type: ignore[override]  # None in a process that was forked, as stock
        """As stock; sends what came before where *string* does not go into the same piece."""
        if isinstance(string, str):  # else stock says what is wrong with it
            unsent = self._unsent + (len(string) if string.isascii() else 4 * len(string))  # as `most_bytes`, no call
            if unsent > PIECE:
                return self._write_in_pieces(string)
            self._unsent = unsent
        return super().write(string)

    def _write_in_pieces(self, text: str) -> int:
        for piece in pieces(text, PIECE):
            if self._unsent:
                self._unsent = 0
                self.flush()
            super().write(piece)
            self._unsent = most_bytes(piece)
        return len(text)


NAME = f"{__name__}.{OutStream.__name__}"  # by which it is to be configured
OutStream.__module__ = iostream.OutStream.__module__  # there are libraries that ask for it to know where they are


def most_bytes(text: str) -> int:
    """The bytes of *text* as UTF-8, or more: it is not looked at."""
    return len(text) if text.isascii() else 4 * len(text)


def pieces(text: str, size: int) -> Iterator[str]:
    """*text* in pieces of at most *size* bytes as UTF-8; two surrogates that make one character stay together."""
    step = max(1, size if text.isascii() else size // 4)
    start = 0
    while start < len(text):
        end = start + step
        if step > 1 and "\ud800" <= text[end - 1 : end] <= "\udbff" and "\udc00" <= text[end : end + 1] <= "\udfff":
            end -= 1
        yield text[start:end]
        start = end
