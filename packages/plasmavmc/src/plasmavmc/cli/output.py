"""Results on stdout: a table for people, one document for machines, or names for scripts; all else goes to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from plasmavmc.cli.ends import Failure

Row = Mapping[str, object]

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "name"]), default="table", help="How to print results."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Names only, and no progress.")


def result_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-o` and `-q`, which come as one parameter `output`."""

    def merge(*, output: str, quiet: bool, **given: Any) -> Any:
        return function(output="name" if quiet and output == "table" else output, **given)

    merge.__name__, merge.__doc__ = function.__name__, function.__doc__
    merge.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]  # where click keeps them
    return output_option(quiet_option(merge))


def say(text: str) -> None:
    """A word to people."""
    click.echo(text, err=True)


def show(output: str, document: Any, rows: Sequence[Row], *, name: str, empty: str = "") -> None:
    """Print a list: `document` for machines, `rows` (title → cell) for people, the column `name` for scripts."""
    match output:
        case "json":
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        case "name":
            for row in rows:
                click.echo(str(row[name]))
        case _:
            if rows:
                click.echo(table(rows))
            elif empty:
                say(empty)


def show_one(output: str, document: Any, pairs: Row, *, name: str) -> None:
    """Print one thing, by the same rules."""
    match output:
        case "json":
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        case "name":
            click.echo(name)
        case _:
            width = max(len(title) for title in pairs)
            click.echo("\n".join(f"{title.ljust(width)}  {cell(value)}" for title, value in pairs.items()))


def show_done(output: str, names: Sequence[str]) -> None:
    """Print what something was done to."""
    click.echo(json.dumps(list(names), indent=2) if output == "json" else "\n".join(names))


def show_ends(output: str, done: Sequence[str], failed: Sequence[Failure]) -> None:
    """Print what something was done to, and why not to the others.

    Raises:
        Failure: the first of them, after the others were shown; it decides how the command ends.
    """
    if done or output == "json":
        show_done(output, done)
    for failure in failed[1:]:
        failure.show()
    if failed:
        raise failed[0]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns under their titles."""
    titles = list(rows[0])
    lines = [[title.upper() for title in titles], *([cell(row[title]) for title in titles] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cell(value: object) -> str:
    """What a value looks like; what would command a terminal is made harmless."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(each if each.isprintable() else "?" for each in str(value))


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(moment: float) -> str:
    """How long ago a time (seconds since the epoch) is."""
    seconds = max(int(time.time() - moment), 0)
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // divisor} {unit}"
    return f"{seconds // 86_400} d"
