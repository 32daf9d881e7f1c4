"""Reads the route table: everything that the routes of all apps follow from, in a few queries however many apps there
are.

Every edge fetches the whole table whenever its number rises, and the routes loop reads all of it when it starts. A
query for each app kept servers busy that had some hundred apps, and did so just when other servers had failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shellwego.control.facts import UNFINISHED, live_by_app, portions, releases_of
from shellwego.control.marks import mark
from shellwego.core.apps import App, Release
from shellwego.core.deployments import FINISHED, Deployment, DeploymentState
from shellwego.core.instances import Instance
from shellwego.core.routes import RouteFacts, route_of
from shellwego.core.routing import Route, RouteTable
from shellwego.ports.store import Order, Transaction, eq, within

ROUTES_COUNTER = "routes"
_ENDED_WITHOUT_RELEASE = (DeploymentState.FAILED, DeploymentState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Routed:
    """An app's route, and the instances of which it was made."""

    route: Route | None
    instances: tuple[Instance, ...]
    """Those of the app that live."""


def routes_version(tx: Transaction) -> int:
    """The newest version of the route table; 0 before there was any."""
    return mark(tx, ROUTES_COUNTER)


def route_table(tx: Transaction) -> RouteTable:
    """The route table as it is now.

    It may be ahead of its version by changes that the routes loop has not numbered yet, never behind: whatever was given
    an `unrouted_version` up to this one is not in it.
    """
    routes = (routed.route for routed in routed_apps(tx, tx.apps.select()).values())
    return RouteTable(
        version=routes_version(tx),
        routes=tuple(sorted((route for route in routes if route is not None), key=lambda route: route.host)),
    )


def routed_apps(tx: Transaction, apps: Sequence[App]) -> dict[str, Routed]:
    """The routes of these apps, by app."""
    live, unfinished = live_by_app(tx, [app.id for app in apps]), _unfinished(tx, apps)
    left = _lingering(tx)
    releases = releases_of(tx, _release_ids(apps, live, left, unfinished))
    now = tx.now()
    found = {}
    for app in apps:
        instances, own = live.get(app.id, ()), unfinished.get(app.id, ())
        last = _last(tx, app) if _last_counts(app, own, releases) else None
        facts = RouteFacts(
            now=now,
            app=app,
            releases=releases,
            instances=instances,
            lingering=left.get(app.id, ()),
            running=next((each for each in own if each.state is DeploymentState.IN_PROGRESS), None),
            deploying=last is not None and last.state not in FINISHED,
            failed=last is not None and last.state in _ENDED_WITHOUT_RELEASE,
        )
        found[app.id] = Routed(route_of(facts), instances)
    return found


def _lingering(tx: Transaction) -> dict[str, tuple[Instance, ...]]:
    """By app: the instances outside of the routes that edges have sessions open to. Nearly always none."""
    told = {instance_id for edge in tx.edges.select() for instance_id in edge.open_sessions}
    rows = [row for row in map(tx.instances.get, sorted(told)) if row is not None]
    return {app_id: tuple(row for row in rows if row.app_id == app_id) for app_id in {row.app_id for row in rows}}


def _unfinished(tx: Transaction, apps: Iterable[App]) -> dict[str, tuple[Deployment, ...]]:
    """By app: its deployments that have not ended."""
    found: dict[str, tuple[Deployment, ...]] = {}
    for some in portions(app.id for app in apps):
        for row in tx.deployments.select(within("app_id", some), within("state", UNFINISHED)):
            found[row.app_id] = (*found.get(row.app_id, ()), row)
    return found


def _release_ids(
    apps: Sequence[App],
    live: Mapping[str, tuple[Instance, ...]],
    left: Mapping[str, tuple[Instance, ...]],
    unfinished: Mapping[str, tuple[Deployment, ...]],
) -> set[str]:
    """Those that the apps aim at, or that something of them is of."""
    ids = {app.release_id for app in apps}
    for app in apps:
        ids |= {instance.release_id for known in (live, left) for instance in known.get(app.id, ())}
        ids |= {deployment.release_id for deployment in unfinished.get(app.id, ())}
    return ids


def _last_counts(app: App, unfinished: Sequence[Deployment], releases: Mapping[str, Release]) -> bool:
    """Whether the route may follow from what became of the deployment that was asked for last: where one has not ended yet,
    or the app came to no release."""
    return bool(unfinished) or (bool(app.last_release_number) and app.release_id not in releases)


def _last(tx: Transaction, app: App) -> Deployment | None:
    newest = Order("created_at", descending=True)
    return next(iter(tx.deployments.select(eq("app_id", app.id), order=newest, limit=1)), None)
