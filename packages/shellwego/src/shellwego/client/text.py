"""Text of others on a terminal: what an app, an image or a registry wrote must neither drive it nor forge what stands there.

Dangerous are not ASCII's control characters alone: terminals take U+009B as they take ESC [, and marks of direction show
a text in another order than it has.
"""

from __future__ import annotations

import re

_CONTROLS = r"\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNLESS_COLOUR = re.compile(rf"\x1b(?!\[[0-9;]*m)|[{_CONTROLS}]")
_RESET = "\x1b[0m"
_ALL = re.compile(rf"[\x1b{_CONTROLS}]")
_NOT_ASCII_CONTROLS = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Lines without control characters other than tab and colour, which ends with them: the colour of a text may be none at
    all, and would hide what is said after it."""
    shown = _UNLESS_COLOUR.sub("\ufffd", text)
    return f"{shown}{_RESET}" if "\x1b" in shown else shown


def one_line(text: str) -> str:
    """A text that fills a cell or a line and no more: no control characters, no colour."""
    return _ALL.sub("\ufffd", text.replace("\n", " "))


def safe_json(document: str) -> str:
    """The same JSON document, with what JSON does not escape by itself but a terminal obeys."""
    return _NOT_ASCII_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def why_not_read(error: Exception) -> str:
    """Why a file was not read as text or as TOML, without Python's own words for it."""
    match error:
        case OSError():
            return f"it cannot be read: {error.strerror}"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
        case _:
            return str(error)


def is_safe(document: str) -> bool:
    """Whether nothing in it, beyond ASCII, is obeyed by a terminal."""
    return not _NOT_ASCII_CONTROLS.search(document)
