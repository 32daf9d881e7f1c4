"""The names loop: numbers the names of each project.

It compares each app's names with those it last saw. Where they differ, the project's number rises, and the nodes that have
instances of the project are hinted: they fetch the names, which are read together with their number. One loop numbers;
everybody may read.

Names that differed between two looks, and are as before again, were fetched by some under the old number. So they rise as
well where an instance may have left them and come back, or came and went (`core.names.detoured`).

After a start nothing is known, so each number rises once, and every node fetches once. As in the routes loop, all that is
looked at is read on a snapshot, and the transaction that numbers has the counters only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from shellwego.control.facts import apps_of, instance_rows, portions
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.loops.hints import follow_apps
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.names import named_apps, names_counter
from shellwego.control.unit import Control, Unit
from shellwego.core.names import AppNames, NameStep, detoured, names_of_app, steps
from shellwego.ports.store import Transaction, within
from shellwego.wire import subjects

_MOST_PROJECTS = 25
"""Whose numbers rise in one transaction."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What was seen of an app."""

    project_id: str
    names: AppNames | None = None
    """None: it has none any more."""
    instances: int = 0
    """So many rows, also of those that have ended."""
    steps: Mapping[str, NameStep] = field(default_factory=dict)

    def differs(self, known: _Named | None) -> bool:
        """Whether the names are others now, or may have been meanwhile."""
        if known is None or (self.project_id, self.names) != (known.project_id, known.names):
            return True
        return self.names is not None and (self.instances != known.instances or detoured(known.steps, self.steps))


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
        news = {app_id: named for app_id, named in seen.items() if named.differs(self._known.get(app_id))}
        before = {self._known[app_id].project_id for app_id in news if app_id in self._known}
        for some in portions(before | {named.project_id for named in news.values()}, _MOST_PROJECTS):
            nodes = await self.control.read(partial(_nodes_of, project_ids=some))
            await self.control.commit(partial(_number, project_ids=some, node_ids=nodes))
        self._known |= seen
        for app_id in ids - seen.keys():
            self._known.pop(app_id, None)

    def _seen(self, tx: Transaction, app_ids: set[str]) -> dict[str, _Named]:
        """The names of these apps. One that is gone has none any more; one that was never known, or is known to be gone, is
        not in it."""
        apps = apps_of(tx, app_ids)
        rows = instance_rows(tx, [each.id for each in apps])
        found = {
            each.app.id: _Named(
                project_id=each.app.project_id,
                names=names_of_app(each),
                instances=rows.get(each.app.id, 0),
                steps=steps(each.instances),
            )
            for each in named_apps(tx, apps)
        }
        for app_id in app_ids - found.keys():
            known = self._known.get(app_id)
            if known is not None and known.names is not None:
                found[app_id] = _Named(project_id=known.project_id)
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
