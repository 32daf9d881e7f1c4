"""Progress of long work on stderr: a line per stage; on a terminal the current reason is shown in place."""

from __future__ import annotations

import shutil
import sys
import time

import click

from shellwego.cli.session import Session
from shellwego.client.text import one_line


class StageProgress:
    """Tells stages as they come. Silent with `--quiet`."""

    def __init__(self, session: Session) -> None:
        self._quiet = session.quiet
        self._live = sys.stderr.isatty() and not session.quiet
        self._color = session.color
        self._began = time.monotonic()
        self._stage = ""
        self._shown = ""

    def update(self, stage: str, reason: str = "") -> None:
        """The work is at this stage, for this reason."""
        if stage != self._stage:
            self._clear()
            self._stage = stage
            if not self._quiet and not self._live:
                click.echo(self._line(stage, reason), err=True)
        if self._live:
            self._show(self._line(stage, reason))

    def done(self, text: str, *, good: bool) -> None:
        """The work is over."""
        self._clear()
        if not self._quiet:
            mark = "✓" if good else "✗"
            styled = click.style(mark, fg="green" if good else "red") if self._color else mark
            click.echo(f"{styled} {one_line(text)} ({time.monotonic() - self._began:.1f} s)", err=True)

    def _line(self, stage: str, reason: str) -> str:
        return one_line(f"  {stage:<10} {reason}".rstrip())

    def _show(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = line[:width]
        if line != self._shown:
            click.echo("\r\033[K" + line, err=True, nl=False)
            self._shown = line

    def _clear(self) -> None:
        if self._live and self._shown:
            click.echo("\r\033[K", err=True, nl=False)
            self._shown = ""
