"""Which apps a hint is about."""

from __future__ import annotations

from shellwego.control.unit import Control
from shellwego.ports.bus import Hint
from shellwego.ports.store import Transaction


def all_apps(tx: Transaction) -> set[str]:
    """Every app."""
    return {app.id for app in tx.apps.select()}


async def hinted_apps(control: Control, hint: Hint) -> set[str]:
    """The apps that a hint on `subjects.ALL_APPS` is about; where hints were missed, all."""
    return await control.read(all_apps) if hint.missed else {hint.subject.partition(".")[2]}
