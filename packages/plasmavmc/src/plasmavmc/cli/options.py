"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

CACHE_VARIABLE = "SHELLWEGO_CACHE"
DEFAULT_CACHE = Path("/var/cache/shellwego")

cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=CACHE_VARIABLE,
    default=DEFAULT_CACHE,
    show_default=True,
    help="The host's cache.",
)
