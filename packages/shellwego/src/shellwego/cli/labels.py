"""Labels and taints as people write them: `NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable

import click


def labels_of(texts: Iterable[str], form: str = "NAME=VALUE") -> dict[str, str]:
    """The labels that texts of this form stand for.

    Raises:
        click.UsageError: one is not of it, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{text!r} is not {form}.")
        if name in found:
            raise click.UsageError(f"The label {name} is named twice.")
        found[name] = value
    return found
