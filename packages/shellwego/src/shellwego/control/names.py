"""Which names a node's guests may ask for: those of the projects that have instances there.

The names of a project have a number, which the names loop counts up (`loops.names`). By these a node knows without more
whether there is anything new for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from shellwego.control.facts import live_by_app, releases_of
from shellwego.control.marks import mark
from shellwego.core.apps import App
from shellwego.core.names import NamedApp, NetworkNames, NodeNames, names_of_app, names_of_network
from shellwego.ports.store import Transaction, eq


def names_counter(project_id: str) -> str:
    """The counter that numbers a project's names."""
    return f"names.{project_id}"


def named_apps(tx: Transaction, apps: Sequence[App]) -> list[NamedApp]:
    """What the names of these apps follow from, as it is now."""
    live = live_by_app(tx, [app.id for app in apps])
    running = {instance.release_id for instances in live.values() for instance in instances}
    releases = releases_of(tx, running | {app.release_id for app in apps})
    return [NamedApp(app=app, instances=live.get(app.id, ()), releases=releases) for app in apps]


def names_version(tx: Transaction, project_ids: Collection[str]) -> str:
    """Of the names for a node that has instances of these projects."""
    numbers = " ".join(f"{project_id}:{_number(tx, project_id)}" for project_id in sorted(project_ids))
    return hashlib.sha256(numbers.encode()).hexdigest()[:32]


class NameBook:
    """The names of each project at its last number, so that many nodes cost one look at the store.

    They may be ahead of their number by what the loop has not numbered yet, never behind.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, NetworkNames]] = {}

    def of(self, tx: Transaction, project_ids: Collection[str]) -> NodeNames:
        """The names for a node that has instances of these projects."""
        networks = tuple(self._names(tx, project_id) for project_id in sorted(project_ids))
        return NodeNames(version=names_version(tx, project_ids), networks=networks)

    def _names(self, tx: Transaction, project_id: str) -> NetworkNames:
        number = _number(tx, project_id)
        known = self._known.get(project_id)
        if known is None or known[0] != number or not number:
            known = self._known[project_id] = number, _project_names(tx, project_id)
        return known[1]


def _number(tx: Transaction, project_id: str) -> int:
    """0 before there was any."""
    return mark(tx, names_counter(project_id))


def _project_names(tx: Transaction, project_id: str) -> NetworkNames:
    project = tx.projects.get(project_id)
    named = map(names_of_app, named_apps(tx, tx.apps.select(eq("project_id", project_id))))
    network_id = project.network_id if project is not None else ""
    return names_of_network(network_id, filter(None, named))
