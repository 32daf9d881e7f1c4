"""Groups of commands about one noun, which understand the names of commands that people know from elsewhere."""

from __future__ import annotations

import click

_ALSO = {"list": ("ls",), "show": ("ls",)}


class NounGroup(click.Group):
    """`list` is `ls`; `show` is `ls` where there is nothing to show but the list."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = (cmd_name, *_ALSO.get(cmd_name, ()))
        return next((found for name in names if (found := super(NounGroup, self).get_command(ctx, name))), None)
