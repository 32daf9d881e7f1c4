"""`plasmavmc completion`."""

from __future__ import annotations

import click

from plasmavmc.cli.lazy import HELP


@click.command(context_settings=dict(HELP))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script; bash: eval "$(plasmavmc completion bash)"."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices above are click's own
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "plasmavmc", "_PLASMAVMC_COMPLETE").source())
