"""The terminal on this side: raw while it belongs to a guest, its size, and the keys that let go of the guest."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plasmavmc.cli.ends import USAGE, Failure

if TYPE_CHECKING:
    from plasmavmc.types import TerminalSize

DEFAULT_KEYS = "ctrl-p,ctrl-q"


def size_of_terminal() -> TerminalSize:
    """Of the terminal that stdin is, else of stdout's; 24 by 80 where there is none."""
    from plasmavmc.types import TerminalSize  # noqa: PLC0415

    for descriptor in (0, 1):
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            if found.lines and found.columns:
                return TerminalSize(found.lines, found.columns)
    return TerminalSize()


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, ^C too; what the terminal was before is restored whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)  # what was typed already is kept
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as bytes; a letter stands for itself; empty: no keys let go."""
    return bytes(_key(each, text) for each in text.split(",")) if text else b""


def _key(name: str, whole: str) -> int:
    if len(name) == 1 and name.isascii() and name.isprintable():
        return ord(name)
    letter = name.lower().removeprefix("ctrl-")
    if len(letter) == 1 and name.lower().startswith("ctrl-") and letter in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
        return ord(letter.upper()) & 0x1F
    raise Failure(
        f"--detach-keys {whole[:80]!r}: {name[:20]!r} is no key",
        code=USAGE,
        resolution="Write ctrl-p,ctrl-q, or ctrl-]",
    )


@dataclass(slots=True)
class KeyWatch:
    """Looks for the keys in what is typed. The beginning of them is held back until it is known what it is."""

    keys: bytes
    held: bytes = field(default=b"")

    def typed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes to the guest, and whether the keys were typed (then nothing after them goes)."""
        out = bytearray()
        for index in range(len(data)):
            self.held += data[index : index + 1]
            if self.keys and self.held == self.keys:
                self.held = b""
                return bytes(out), True
            while self.held and not self.keys.startswith(self.held):
                out += self.held[:1]
                self.held = self.held[1:]
        return bytes(out), False
