"""Variables as people keep them in files: lines `NAME=VALUE`, with `export` before, quotes around the value, comments.

Quotes are as of docker compose: in double ones `\\n`, `\\r`, `\\t`, `\\"`, `\\\\` and `\\$` stand for a character; in single
ones all stands for itself; and a value in quotes may have several lines. Values may be secret: an error tells the line's
number and nothing of what stands there.
"""

from __future__ import annotations

import re

from shellwego.cli.failure import USAGE, Failure

_NAME = re.compile(r"(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]{0,127})[ \t]*=[ \t]*")
_QUOTED = {
    '"': re.compile(r'"(?P<value>(?:[^"\\]|\\.)*)"', re.DOTALL),
    "'": re.compile(r"'(?P<value>[^']*)'"),
}
_REST_OF_LINE = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPED = re.compile(r"\\([nrt\"\\$])")
_MEANT = {"n": "\n", "r": "\r", "t": "\t"}


def variables(text: str) -> dict[str, str]:
    """The variables of a file; the last of a name counts.

    Raises:
        Failure: a line is not of this form.
    """
    text = "\n".join(text.removeprefix("\ufeff").split("\r\n"))
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end].strip()
        if not line or line.startswith("#"):
            at = end + 1
            continue
        at += len(text[at:end]) - len(text[at:end].lstrip())
        head = _NAME.match(text, at, end)
        if head is None:
            raise _wrong(text, at, "is not NAME=VALUE")
        found[head["name"]], at = _value(text, head.end(), end)
    return found


def _value(text: str, at: int, end: int) -> tuple[str, int]:
    """The value that begins here, and where the next line does."""
    quote = text[at : at + 1]
    if quote not in _QUOTED:
        return text[at:end].strip(), end + 1
    quoted = _QUOTED[quote].match(text, at)
    if quoted is None:
        raise _wrong(text, at, "has a quote that is not closed")
    rest = _REST_OF_LINE.match(text, quoted.end())
    if rest is None:
        raise _wrong(text, quoted.end(), "goes on behind the closing quote")
    value = quoted["value"]
    return (_ESCAPED.sub(_character, value) if quote == '"' else value), rest.end()


def _character(escaped: re.Match[str]) -> str:
    return _MEANT.get(escaped[1], escaped[1])


def _wrong(text: str, at: int, what: str) -> Failure:
    number = text.count("\n", 0, at) + 1
    return Failure(
        f"line {number} {what}",
        code=USAGE,
        resolution="Names have letters, digits and _. A value of several lines, or with quotes in it, stands in quotes.",
    )
