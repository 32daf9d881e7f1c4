"""The routes loop: numbers the versions of the route table.

It compares each app's route with the one it saw last. Where one differs, or an instance has entered or left the routes
and has no number for that yet, the counter rises, and the same transaction stores the new number with those instances,
as their `routed_version` or `unrouted_version`. A table is always read together with its number, so an edge that
applied that version has a table with them, or without them. One loop numbers; everybody may read.

A table may be ahead of its number: an edge may have read one in which an instance was in, or out, that had changed back
when this loop looked, or one that has come and gone. The route is then as it was before, and yet that edge would keep the
other one; so such a detour counts as a change, too.

After a start nothing is known. All routes are read once and taken as they are, and the number rises even if there are
none, so that every edge fetches the table: nobody knows what was last seen of an app that has been removed since.

The comparison reads a snapshot, which disturbs nobody. The transaction that numbers touches only the counter and the
instances that get a number, a few at a time. If it read the routes of all apps, it would conflict with other writers
each time it was tried, and a server that has just taken over would never finish. An instance that changed since the
snapshot is left to the look that its change asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from shellwego.control.facts import apps_of, instance_rows, portions
from shellwego.control.loops.hints import follow_apps
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.routetable import ROUTES_COUNTER, Routed, routed_apps
from shellwego.control.unit import Control, Unit
from shellwego.core.instances import Desired, Instance, OwnerKind, Sleep
from shellwego.core.routes import detoured, steps
from shellwego.core.routing import Route
from shellwego.ports.store import eq, within
from shellwego.wire import subjects

_SERVE = eq("owner", OwnerKind.APP.value)
"""One-off runs are in no route."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was last seen of an app."""

    route: Route | None
    steps: Mapping[str, float]
    rows: int
    """Of its instances, of those that have ended too."""

    def is_news(self, known: _Known | None) -> bool:
        """Whether the route is another now, or may have been meanwhile."""
        if known is None or self.route != known.route or detoured(known.steps, self.steps):
            return True
        return self.rows - known.rows > len(self.steps.keys() - known.steps.keys())


@dataclass(slots=True)
class RoutesLoop:
    """The routes as last numbered, by app."""

    control: Control
    _known: dict[str, _Known] = field(default_factory=dict)
    _begun: bool = False

    async def run(self) -> None:
        """Keep the numbers until cancelled."""
        await follow_apps(self.control, self._known.keys(), self.renumber)

    async def renumber(self, app_ids: Iterable[str]) -> None:
        """Look at some apps; where a route changed, give the table its next number."""
        ids = set(app_ids)
        seen, rows = await self.control.read(
            lambda tx: (routed_apps(tx, apps_of(tx, ids)), instance_rows(tx, ids, _SERVE))
        )
        now = {id_: _Known(each.route, steps(each.instances), rows.get(id_, 0)) for id_, each in seen.items()}
        gone = ids & self._known.keys() - seen.keys()
        unnumbered = {row.id: row for routed in seen.values() for row in _unnumbered(routed)}
        for some in portions(unnumbered):
            await self.control.commit(partial(_number, seen=[unnumbered[id_] for id_ in some]))
        news = not self._begun or gone or any(each.is_news(self._known.get(id_)) for id_, each in now.items())
        if news and not unnumbered:
            await self.control.commit(partial(_number, seen=()))
        self._begun = True
        for app_id in gone:
            del self._known[app_id]
        self._known |= now


def _number(unit: Unit, seen: Sequence[Instance]) -> None:
    """Give the table its next number, and that to these instances, as far as they are still as they were seen."""
    version = unit.tx.next(ROUTES_COUNTER)
    stored = {row.id: row for row in unit.tx.instances.select(within("id", tuple(row.id for row in seen)))}
    for row in seen:
        if stored.get(row.id) == row:
            numbered = replace(row, unrouted_version=version) if _leaves(row) else replace(row, routed_version=version)
            unit.tx.instances.update(numbered)
            unit.hint(subjects.app(row.app_id))
    unit.hint(subjects.ROUTES)


def _unnumbered(routed: Routed) -> list[Instance]:
    """Instances that entered the route or left it, and that no version was given to."""
    entered = {endpoint.instance_id for endpoint in routed.route.endpoints} if routed.route else set()
    leaving = [row for row in routed.instances if _leaves(row) and row.unrouted_version is None]
    return leaving + [row for row in routed.instances if row.id in entered and row.routed_version is None]


def _leaves(row: Instance) -> bool:
    """It drains, or is to sleep."""
    return row.desired is Desired.DRAIN or row.sleep is Sleep.DOZING


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "routes", holder, lambda fenced: lambda: RoutesLoop(fenced).run())
