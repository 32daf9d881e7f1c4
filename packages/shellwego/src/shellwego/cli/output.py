"""Results on stdout: a table for people, one document for machines, or names for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from shellwego.cli.session import Session
from shellwego.client.text import is_safe, one_line, safe_json

Row = Mapping[str, object]


def show(session: Session, document: Any, rows: Sequence[Row], *, name: str = "name", empty: str = "") -> None:
    """Print a result: `document` for machines, `rows` (column title → cell) for people, the `name` column for scripts."""
    match session.output:
        case "json":
            click.echo(safe_json(json.dumps(document, indent=2, ensure_ascii=False)))
        case "yaml":
            click.echo(_yaml(document), nl=False)
        case "name":
            for row in rows:
                click.echo(one_line(str(row.get(name, next(iter(row.values()), "")))))
        case _:
            if rows:
                click.echo(table(rows))
            elif empty:
                session.say(empty)


def show_next(session: Session, document: Any, text: str) -> None:
    """Print one of many that come in time: a line of JSON, a YAML document, or `text` for people and scripts."""
    match session.output:
        case "json":
            click.echo(safe_json(json.dumps(document, ensure_ascii=False, separators=(",", ":"))))
        case "yaml":
            click.echo("---\n" + _yaml(document), nl=False)
        case _:
            click.echo(text)


def _yaml(document: Any) -> str:
    import yaml  # noqa: PLC0415 - asked for seldom

    text = str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return text if is_safe(text) else str(yaml.safe_dump(document, sort_keys=False))  # with all but ASCII escaped


def table(rows: Sequence[Row]) -> str:
    """Aligned columns under their titles."""
    titles = list(rows[0])
    cells = [[title.upper() for title in titles], *([_cell(row.get(title)) for title in titles] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(titles))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def fields(pairs: Mapping[str, object]) -> str:
    """One thing, a line per field."""
    width = max((len(title) for title in pairs), default=0)
    return "\n".join(f"{title.ljust(width)}  {_cell(value)}" for title, value in pairs.items())


def show_one(session: Session, document: Any, pairs: Mapping[str, object], *, name: str) -> None:
    """Print one thing, by the same rules as `show`."""
    if session.output in ("json", "yaml"):
        show(session, document, [])
    elif session.output == "name":
        click.echo(one_line(name))
    else:
        click.echo(fields(pairs))


def show_removed(session: Session, *names: str) -> None:
    """Print what is gone, or goes, by the names that it was called by: an object `removed` for machines, and the names for
    scripts. People are told by a remark."""
    if session.output in ("json", "yaml"):
        show(session, {"removed": list(names)}, [])
    elif session.output == "name":
        click.echo("\n".join(map(one_line, names)))


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return one_line(str(value))


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def cores(milli: int) -> str:
    """A share of CPU for people, in cores: `2`, `0.5`."""
    return f"{milli / 1000:g}"


def moment(when: datetime) -> str:
    """A time for people and scripts: to the second, in UTC (RFC 3339)."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(since: datetime | None) -> str:
    """How long ago a time is; `-` where there is none."""
    if since is None:
        return "-"
    seconds = int((datetime.now(UTC) - since).total_seconds())
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) // divisor} {unit}"
    return f"{seconds // 86400} d"
