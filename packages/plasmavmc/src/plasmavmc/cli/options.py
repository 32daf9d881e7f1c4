"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

from plasmavmc.guest.cache import CACHE_VARIABLE, DEFAULT_CACHE

cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=CACHE_VARIABLE,
    default=DEFAULT_CACHE,
    show_default=True,
    help="The host's cache.",
)
