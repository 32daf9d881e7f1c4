"""The names loop: numbers the names of each project.

It compares each app's names with those it last saw. Where they differ, the project's number rises, and the nodes that have
instances of the project are hinted: they fetch the names, which are read together with their number. One loop numbers;
everybody may read.

After a start nothing is known, so each number rises once, and every node fetches once. As in the routes loop, all that is
looked at is read on a snapshot, and the transaction that numbers has the counters only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from shellwego.control.facts import apps_of, portions
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.loops.hints import follow_apps
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.names import app_names, names_counter
from shellwego.control.unit import Control, Unit
from shellwego.core.names import AppNames
from shellwego.ports.store import Transaction, within
from shellwego.wire import subjects

_MOST_PROJECTS = 25
"""Whose numbers rise in one transaction."""
_Named = tuple[str, AppNames | None]
"""The project of an app, and its names."""


@dataclass(slots=True)
class NamesLoop:
    """The names as last numbered, by app."""

    control: Control
    _known: dict[str, _Named] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep the numbers until cancelled."""
        await follow_apps(self.control, self._known.keys(), self.renumber)

    async def renumber(self, app_ids: Iterable[str]) -> None:
        """Look at some apps; where names changed, give those of the project their next number."""
        ids = set(app_ids)
        seen = await self.control.read(lambda tx: self._seen(tx, ids))
        news = {app_id: named for app_id, named in seen.items() if named != self._known.get(app_id)}
        if news:
            before = {self._known[app_id][0] for app_id in news if app_id in self._known}
            for some in portions(before | {project for project, _ in news.values()}, _MOST_PROJECTS):
                nodes = await self.control.read(partial(_nodes_of, project_ids=some))
                await self.control.commit(partial(_number, project_ids=some, node_ids=nodes))
            self._known |= news
        for app_id in ids - seen.keys():
            self._known.pop(app_id, None)

    def _seen(self, tx: Transaction, app_ids: set[str]) -> dict[str, _Named]:
        """The names of these apps. One that is gone has none any more; one that was never known, or is known to be gone, is
        not in it."""
        apps = apps_of(tx, app_ids)
        names = app_names(tx, apps)
        found: dict[str, _Named] = {app.id: (app.project_id, names[app.id]) for app in apps}
        for app_id in app_ids - found.keys():
            if self._known.get(app_id, ("", None))[1] is not None:
                found[app_id] = self._known[app_id][0], None
        return found


def _number(unit: Unit, project_ids: Sequence[str], node_ids: Sequence[str]) -> None:
    for project_id in project_ids:
        unit.tx.next(names_counter(project_id))
    for node_id in node_ids:
        unit.hint(subjects.assignments(node_id))


def _nodes_of(tx: Transaction, project_ids: Sequence[str]) -> list[str]:
    """Where the projects have instances."""
    placed = set[str]()
    for apps in portions(tx.apps.sums("id", (), within("project_id", project_ids))):
        placed |= tx.instances.sums("node_id", (), within("app_id", apps), within("phase", LIVE_PHASES)).keys()
    return sorted(filter(None, placed))


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "names", holder, lambda fenced: lambda: NamesLoop(fenced).run())
