"""Passwords, codes and tokens from whoever types them, or from stdin line by line. Never from an argument: arguments are
seen by everybody on the machine, and kept in the shell's history."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from shellwego.cli.failure import USAGE, Failure


def at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\r\n")


@dataclass(slots=True)
class Prompts:
    """Asks at a terminal; else each answer is the next line of stdin."""

    _given: Iterator[str] = field(default_factory=_lines)

    def text(self, question: str) -> str:
        """An answer that may be seen; raises `Failure` where there is none."""
        return self._answer(question, hidden=False)

    def secret(self, question: str, *, optional: bool = False) -> str:
        """An answer that is not shown. Raises `Failure` where it is needed and not there."""
        return self._answer(question, hidden=True, optional=optional)

    def new_secret(self, question: str) -> str:
        """As `secret`, asked twice at a terminal."""
        first = self.secret(question)
        if at_terminal() and self.secret(f"{question} again") != first:
            raise Failure("the two differ: nothing was changed", code=USAGE)
        return first

    def _answer(self, question: str, *, hidden: bool, optional: bool = False) -> str:
        if at_terminal():
            default = "" if optional else None
            return str(click.prompt(question, hide_input=hidden, default=default, show_default=False, err=True))
        given = next(self._given, "")
        if not given and not optional:
            raise Failure(f"{question}: nobody can be asked, and stdin has no line for it", code=USAGE)
        return given
