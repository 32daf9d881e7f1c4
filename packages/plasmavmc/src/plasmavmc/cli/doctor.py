"""`plasmavmc doctor`: whether this host can run microVMs, and whether a server that runs is well."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plasmavmc.cli.connection import connection
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.options import cache_option

if TYPE_CHECKING:
    from plasmavmc.cli.findings import Finding

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(context_settings=dict(HELP))
@cache_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print results.")
@click.option("-q", "--quiet", is_flag=True, help="Only what is not well.")
def doctor(cache: Path, output: str, *, quiet: bool) -> None:
    """Check this host and the server. Each line is ok, warn or fail; what is not well has its remedy below.

    Ends with 1 where something failed.
    """
    from plasmavmc.cli.findings import check_host, check_server  # noqa: PLC0415 - heavy, and not needed for --help

    found = [*check_host(cache), *check_server(connection())]
    failed = any(finding.state == "fail" for finding in found)
    if output == "json":
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(each) for each in found]}, indent=2))
    else:
        _print([each for each in found if not quiet or each.state != "ok"])
    raise click.exceptions.Exit(1 if failed else 0)


def _print(found: list[Finding]) -> None:
    width = max((len(each.check) for each in found), default=0)
    for each in found:
        state = f"{each.state:<4}"
        styled = click.style(state, fg=_COLORS[each.state]) if sys.stdout.isatty() else state
        click.echo(f"{styled}  {each.check:<{width}}  {each.message}")
        if each.remedy:
            click.echo(f"{'':<{6 + width}}  → {each.remedy}")
