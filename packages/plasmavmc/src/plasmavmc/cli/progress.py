"""Progress of an image's way into the host, on stderr: in place on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from plasmavmc.cli.output import size

if TYPE_CHECKING:
    from plasmavmc.rpc.api import ImageProgress

_WORDS = {"upload": "uploading", "resolve": "asking the registry", "fetch": "fetching", "build": "building"}


class Progress:
    """What is told of one image. Silent with `quiet`."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._stage = ""

    def update(self, now: ImageProgress) -> None:
        """The work is so far."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            click.echo("\r\033[K" + self._line(now)[:width], err=True, nl=False)
        elif not self._quiet and now.stage != self._stage:
            click.echo(f"{self._name}: {_WORDS.get(now.stage, now.stage)}", err=True)
        self._stage = now.stage

    def clear(self) -> None:
        """Take away the line that shows it."""
        if self._live and self._stage:
            click.echo("\r\033[K", err=True, nl=False)

    def _line(self, now: ImageProgress) -> str:
        words = f"{self._name}: {_WORDS.get(now.stage, now.stage)}"
        if not now.done_bytes:
            return words
        whole = f" of {size(now.total_bytes)}, {100 * now.done_bytes // now.total_bytes} %" if now.total_bytes else ""
        return f"{words} {size(now.done_bytes)}{whole}"
