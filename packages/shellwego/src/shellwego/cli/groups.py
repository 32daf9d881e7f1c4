"""Groups of commands about one noun, which understand the names of commands that people know from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

_REMOVAL = ("rm", "destroy", "delete", "revoke", "unset")
"""What removing is called. Each group has one of them, by what is lost; the first that it has is meant."""
_ALSO = {
    "list": ("ls",),
    "show": ("ls",),
    **dict.fromkeys(("describe", "get", "info", "inspect"), ("show", "ls")),
    **dict.fromkeys(("remove", *_REMOVAL), _REMOVAL),
    "change": ("update",),
    "update": ("change",),
}
"""A name that a group has not → the commands that may be meant, the likeliest first."""
AT_THE_ROOT = {
    **dict.fromkeys(("ls", "list"), "apps ls"),
    **dict.fromkeys(("describe", "get", "info", "inspect"), "apps show"),
    **dict.fromkeys(("destroy", "delete", "remove", "rm"), "apps destroy"),
    **{name: f"apps {name}" for name in ("create", "show", "start", "stop", "restart")},
    "apply": "deploy",
    "auth": "login",
    "config": "env",
    "history": "releases",
    "init": "launch",
    **dict.fromkeys(("instance", "instances", "machine", "machines"), "vms"),
    "ps": "status",
    "pull": "images pull",
    **dict.fromkeys(("attach", "sh", "shell", "ssh"), "console"),
    "version": "--version",
}
"""What others call what is done to an app or to the platform → what it is called here."""


class NounGroup(click.Group):
    """`list` is `ls`, and any word for removing is the group's own; `show` is `ls` where there is only the list."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = (cmd_name, *_ALSO.get(cmd_name, ()))
        return next((found for name in names if (found := super(NounGroup, self).get_command(ctx, name))), None)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            option = error.option_name
            if not any(option in each.opts for command in self.commands.values() for each in command.params):
                raise
            words = f"{option} stands behind the whole command: {ctx.command_path} COMMAND {option}"
            raise click.UsageError(f"{words}. See: {ctx.command_path} --help", ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise unknown_command(ctx, args[0], self.list_commands(ctx)) from error


def unknown_command(
    ctx: click.Context, name: str, known: list[str], elsewhere: Mapping[str, str] = MappingProxyType({})
) -> click.UsageError:
    """The error for a command that is not there, with the one that was probably meant."""
    from difflib import get_close_matches  # noqa: PLC0415 - only after a mistake

    near = [elsewhere[name]] if name in elsewhere else get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]!r}?" if near else f" See: {ctx.command_path} --help"
    return click.UsageError(f"No such command {name!r}.{hint}", ctx)
