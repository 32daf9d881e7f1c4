"""What nodes say that their VMs sent and received, kept in memory until somebody reads it.

Counters are no state of the platform: a minute later they are worth nothing, and to write them would be most of what an idle
store does. So a server knows what it was told itself. A node tells one server, and another one where that does not answer;
then both may show it for a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shellwego.core.traffic import NodeTraffic, Passed
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction, within

KEPT_S = 60.0
_AT_ONCE = 500
"""Apps that are looked up together."""


@dataclass(frozen=True, slots=True)
class AppTraffic:
    """Of one app on one node, as people call them."""

    node: str
    organization: str
    project: str
    app: str
    passed: Passed


@dataclass(frozen=True, slots=True)
class Dropped:
    """Frames of one node's VMs that their host did not let pass."""

    node: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class PlatformTraffic:
    apps: Sequence[AppTraffic]
    dropped: Sequence[Dropped]


@dataclass(frozen=True, slots=True)
class _AppName:
    project_id: str
    name: str


class TrafficBook:
    """What nodes told this server last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, NodeTraffic]] = {}
        """With the moment of the monotonic clock, by node."""
        self._names: Mapping[str, _AppName] = {}
        """Of the apps that were read last: they are many, and none is ever renamed."""

    def note(self, node_id: str, traffic: NodeTraffic) -> None:
        """A node of the platform told this, within its bounds."""
        self._told = {**self._fresh(), node_id: (self._clock.monotonic(), traffic)}

    def read(self, tx: Transaction) -> PlatformTraffic:
        """What is known now; nothing of apps and nodes that are no more. May be called in any thread."""
        told = {node_id: traffic for node_id, (_, traffic) in self._fresh().items()}
        self._names = apps = _app_names(tx, {app_id for each in told.values() for app_id in each.apps}, self._names)
        nodes = {node.id: node.name for node in tx.nodes.select() if node.id in told}
        projects = {project.id: project for project in tx.projects.select()} if apps else {}
        organizations = {each.id: each.name for each in tx.organizations.select()} if apps else {}
        names = {
            app_id: (organizations[project.organization_id], project.name, app.name)
            for app_id, app in apps.items()
            if (project := projects.get(app.project_id)) is not None
        }
        counted = {
            (node, *names[app_id]): told[node_id].apps[app_id]
            for node_id, node in nodes.items()
            for app_id in sorted(told[node_id].apps.keys() & names.keys())  # the youngest of one name is the last
        }
        dropped = [
            Dropped(node, reason, count)
            for node_id, node in nodes.items()
            for reason, count in told[node_id].dropped.items()
        ]
        return PlatformTraffic([AppTraffic(*key, passed) for key, passed in counted.items()], dropped)

    def _fresh(self) -> dict[str, tuple[float, NodeTraffic]]:
        """What a node said longer ago says nothing of now."""
        oldest = self._clock.monotonic() - KEPT_S
        return {node_id: told for node_id, told in self._told.items() if told[0] >= oldest}


def _app_names(tx: Transaction, ids: set[str], known: Mapping[str, _AppName]) -> dict[str, _AppName]:
    names = {app_id: known[app_id] for app_id in ids & known.keys()}
    unknown = sorted(ids - known.keys())
    for first in range(0, len(unknown), _AT_ONCE):
        found = tx.apps.select(within("id", unknown[first : first + _AT_ONCE]))
        names |= {app.id: _AppName(app.project_id, app.name) for app in found}
    return names
