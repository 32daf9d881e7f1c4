"""A group of commands that are imported only when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

HELP: Mapping[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""


class LazyGroup(click.Group):
    """Knows its commands by name, place (`module:attribute`) and one line of help."""

    def __init__(
        self, commands: Mapping[str, tuple[str, str]], *, hints: Mapping[str, str] | None = None, **attributes: Any
    ) -> None:
        """`hints`: words that people bring along from elsewhere, and what they are called here."""
        super().__init__(**{"context_settings": dict(HELP), **attributes})
        self._places = commands
        self._hints = hints or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return None
        module, attribute = self._places[cmd_name][0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the tables are ours
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # noqa: PLC0415 - only after a mistake

            near = [self._hints[args[0]]] if args[0] in self._hints else get_close_matches(args[0], self._places, n=1)
            hint = f" Did you mean '{ctx.command_path} {near[0]}'?" if near else f" See: {ctx.command_path} --help"
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_place, words) in self._places.items()])
