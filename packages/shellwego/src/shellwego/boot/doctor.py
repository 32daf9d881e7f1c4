"""`swg doctor`: whether this machine can run the platform, and whether the platform that is set up is well."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from shellwego.boot.findings import Finding, State
from shellwego.client.text import one_line

_COLORS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir", type=click.Path(), help="Where the platform keeps, or would keep, everything. [as for swg up]"
)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="The file with the contexts.")
@click.option("--context", envvar="SHELLWEGO_CONTEXT", default="", metavar="NAME", help="The context to use.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", help="How to print results.")
@click.option("--json", "as_json", is_flag=True, help="Same as --output json.")
@click.option("-q", "--quiet", is_flag=True, help="Only what is not well.")
@click.option("--no-color", is_flag=True, envvar="NO_COLOR", help="No colours.")
def doctor(
    *, data_dir: str | None, config: Path | None, context: str, output: str, as_json: bool, quiet: bool, no_color: bool
) -> None:
    """Check this machine and the platform. Each line is ok, warn or fail; what is not well has its remedy below.

    Ends with 1 where something failed.
    """
    from shellwego.boot.hostchecks import check_host  # noqa: PLC0415 - heavy, and not needed for --help
    from shellwego.boot.platformchecks import check_platform  # noqa: PLC0415
    from shellwego.boot.up import up_settings  # noqa: PLC0415
    from shellwego.core.errors import ShellWeGoError  # noqa: PLC0415

    try:
        settings = up_settings({"data_dir": data_dir})
    except ShellWeGoError as error:
        raise click.UsageError(error.message) from error
    found = [*check_host(settings), *check_platform(config, context)]
    failed = any(finding.state is State.FAIL for finding in found)
    if as_json or output == "json":
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in found]}, indent=2))
    else:
        print_findings(found, quiet=quiet, color=not no_color and sys.stdout.isatty())
    raise click.exceptions.Exit(1 if failed else 0)


def print_findings(found: Sequence[Finding], *, quiet: bool, color: bool) -> None:
    """A line for each, and its remedy below."""
    width = max(len(finding.check) for finding in found)
    for finding in found:
        if quiet and finding.state is State.OK:
            continue
        state = f"{finding.state:<4}"
        styled = click.style(state, fg=_COLORS[finding.state]) if color else state
        click.echo(f"{styled}  {one_line(f'{finding.check:<{width}}  {finding.message}')}")
        if finding.remedy:
            click.echo(f"{'':<{6 + width}}  → {one_line(finding.remedy)}")
