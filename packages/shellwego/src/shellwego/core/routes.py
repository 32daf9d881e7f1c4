"""From apps and instances to the table that the edges serve; and whether an instance that left it may be stopped.

Theory. An instance that serves is stopped in two steps. First it leaves the routes, which gives it an `unrouted_version`:
whoever applied that version or a later one sends it no new request. Then it is stopped, once every edge has applied such a
version and has no session open to it. Both are told by the edges in one report, so "applied, and nothing open" is one fact.

An instance that is to sleep leaves in the same two steps, and comes back when it is awake.

An instance whose VM ended leaves in one step, since nothing is left to be drained. A request that waits for that VM would
wait for its whole time-out: nobody closes a connection of a VM that is gone. So where an edge tells of sessions outside of
the routes, the table tells which of them are at an end (`Departed`), and the edge cuts those alone.

Of an instance that was lost with its node nobody knows. Its VM may still answer, or its host may be dead, and nobody would
ever say so. So it is left the time that one has that drains, and no more.

Two clocks bound the waiting. `drain_timeout` of the app: sessions still open then are cut, and counted. `EDGE_TIMEOUT_S`:
an edge that did not confirm until then is left behind, and named; it may be dead, or may serve on with old routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shellwego.core.apps import App, AppConfig, AppState, Release, wanted_counts
from shellwego.core.appstate import app_state
from shellwego.core.canary import edge_weights
from shellwego.core.deployments import Deployment
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.routing import EVEN_WEIGHT, Departed, Edge, Endpoint, Route, RouteState
from shellwego.core.target import Target

EDGE_TIMEOUT_S = 60.0
FORGOTTEN_S = 24 * 3600.0
"""An edge that was silent for so long was taken down; nobody waits for it any more."""

_STATES: Mapping[AppState, RouteState] = {
    AppState.STOPPED: RouteState.STOPPED,
    AppState.FAILED: RouteState.FAILING,
    AppState.SLEEPING: RouteState.ASLEEP,
}

_SILENT = frozenset({Phase.STARTING, Phase.ASLEEP, Phase.STOPPED, Phase.FAILED})
"""Phases in which the VM that took requests before is known to have ended, or to sleep. One that starts may have its next
VM already."""


_FIRST_PHASES = frozenset({Phase.PENDING, Phase.ASSIGNED, Phase.STARTING})
"""Where no attempt was healthy before."""
_STAYS_OUT, _FIRST = 0.0, 1.0
"""Steps of what is not wanted in the routes, and of a first attempt that was not healthy yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFacts:
    """What the route of one app follows from."""

    now: float
    app: App
    releases: Mapping[str, Release]
    """By id: the one that the app aims at, and those of its instances."""
    instances: tuple[Instance, ...]
    """Those that live."""
    lingering: tuple[Instance, ...] = ()
    """Those that an edge has sessions open to although they left its routes; ended ones too."""
    running: Deployment | None = None
    """The deployment in progress, whose release the app aims at."""
    deploying: bool = False
    failed: bool = False
    """The deployment asked for last ended without its release."""


def service_port(config: AppConfig, process: str) -> int:
    """The port of a process that requests go to; 0 where it has none."""
    return next((service.port for service in config.services if service.process == process), 0)


def route_of(facts: RouteFacts) -> Route | None:
    """The app's route; None for an app that takes no requests.

    During a rollout the endpoints of both releases are in it, each with the port of its own release; a canary's have such
    weights that it gets its part of the requests.
    """
    app = facts.app
    target = facts.releases.get(app.release_id)
    config = target.config if target else None
    endpoints = tuple(sorted(_endpoints(facts), key=lambda endpoint: endpoint.instance_id))
    if app.deleting or (config is not None and not config.services and not endpoints):
        return None
    if endpoints:
        state = RouteState.SERVING
    else:
        known = app_state(app, config, facts.instances, deploying=facts.deploying, failed=facts.failed)
        state = _STATES.get(known, RouteState.STARTING)
    departed = tuple(sorted(_departed(facts), key=lambda departed: departed.instance_id))
    return Route(
        host=app.hostname,
        app_id=app.id,
        app_name=app.name,
        state=state,
        endpoints=endpoints,
        departed=departed,
    )


def _endpoints(facts: RouteFacts) -> Iterator[Endpoint]:
    routed = [(i, address) for i in facts.instances if _is_routed(i) and (address := _address(facts, i))]
    weights = _weights(facts, [instance for instance, _ in routed])
    for instance, address in routed:
        yield Endpoint(instance_id=instance.id, address=address, weight=weights.get(instance.id, EVEN_WEIGHT))


def _weights(facts: RouteFacts, routed: Sequence[Instance]) -> Mapping[str, int]:
    """By instance, while a canary has less than all; else all are equal."""
    running = facts.running
    release = facts.releases.get(running.release_id) if running is not None else None
    if running is None or release is None or running.weight == 100 or not release.config.services:
        return {}
    target = Target(release=release, generation=facts.app.generation)
    wanted = wanted_counts(facts.app, release.config)[release.config.services[0].process]
    new = [instance.id for instance in routed if target.matches(instance)]
    old = [instance.id for instance in routed if not target.matches(instance)]
    return edge_weights(new, old, running.weight, wanted)


def _departed(facts: RouteFacts) -> Iterator[Departed]:
    for instance in facts.lingering:
        if instance.phase in _SILENT or _given_up(facts, instance):
            spared = "" if instance.phase in (Phase.ASLEEP, Phase.LOST) else _address(facts, instance)
            yield Departed(instance_id=instance.id, address=spared)


def _given_up(facts: RouteFacts, instance: Instance) -> bool:
    """It was lost with its node, so long ago that one which drains would be stopped."""
    release = facts.releases.get(instance.release_id)
    patience = release.config.drain_timeout_s if release else 0.0
    return instance.phase is Phase.LOST and facts.now >= instance.phase_since + patience


def _address(facts: RouteFacts, instance: Instance) -> str:
    """Where its VM takes requests; empty where it has no VM, or no service."""
    release = facts.releases.get(instance.release_id)
    port = service_port(release.config, instance.process) if release else 0
    if not port:
        return ""
    ipv4 = instance.observed.ipv4
    return f"tcp:{ipv4}:{port}" if ipv4 else instance.observed.address


def _is_routed(instance: Instance) -> bool:
    wanted = instance.desired is Desired.SERVE and instance.sleep is Sleep.AWAKE
    return instance.owner is OwnerKind.APP and wanted and instance.phase is Phase.HEALTHY


def steps(instances: Iterable[Instance]) -> dict[str, float]:
    """By instance: what is another value once it may have entered the routes, or left them, and come back."""
    return {instance.id: _step(instance) for instance in instances if instance.owner is OwnerKind.APP}


def _step(instance: Instance) -> float:
    if instance.desired is not Desired.SERVE or instance.sleep is not Sleep.AWAKE:
        return _STAYS_OUT
    if instance.phase in _FIRST_PHASES:
        return float(max(instance.observed.attempt, _FIRST))
    return instance.phase_since


def detoured(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether a table that was read between two looks may have had other endpoints than at both, alike as they may be."""
    ended = any(step != _STAYS_OUT for id_, step in before.items() if id_ not in now)
    return ended or any(before.get(id_, _FIRST) != step for id_, step in now.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Drainage:
    """How far an instance is emptied."""

    done: bool
    reason: str = ""
    """What is waited for."""
    until: float | None = None
    """When time alone ends the waiting."""
    cut: int = 0
    """Sessions that are cut by stopping it now."""
    silent: tuple[str, ...] = ()
    """Edges that never confirmed, by name."""


def drained(instance: Instance, edges: Sequence[Edge], drain_timeout_s: float, now: float) -> Drainage:
    """Whether a draining instance may be stopped at `now` (the time of the store, as the leases)."""
    if instance.unrouted_version is None or instance.drain_since is None:
        return Drainage(done=False, reason="waits for the new routes")
    known = [edge for edge in edges if edge.lease_until >= now - FORGOTTEN_S]
    confirmed = [edge for edge in known if _confirmed(edge, instance.unrouted_version, now)]
    behind = [edge for edge in known if edge not in confirmed]
    give_up, cut = instance.drain_since + EDGE_TIMEOUT_S, instance.drain_since + drain_timeout_s
    if behind and now < give_up:
        reason = f"waits for the edge {_names(behind)} to apply the new routes"
        return Drainage(done=False, reason=reason, until=_soonest(give_up, confirmed))
    sessions = sum(edge.open_sessions.get(instance.id, 0) for edge in confirmed)
    if sessions and now < cut:
        reason = f"waits for open sessions, at most {drain_timeout_s:g} s"
        return Drainage(done=False, reason=reason, until=_soonest(cut, confirmed))
    return Drainage(done=True, cut=sessions, silent=tuple(sorted(edge.name for edge in behind)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Whether the edges send requests to an instance."""

    done: bool
    reason: str = ""
    """What is waited for."""
    until: float | None = None
    """When time alone ends the waiting."""


def arrived(instance: Instance, edges: Sequence[Edge], now: float) -> Arrival:
    """Whether a healthy instance with a service is served by every edge that holds its lease at `now`.

    As with draining, an edge that does not confirm is left behind after `EDGE_TIMEOUT_S`.
    """
    give_up = instance.phase_since + EDGE_TIMEOUT_S
    held = [edge for edge in edges if edge.lease_until > now]
    version = instance.routed_version
    behind = [edge for edge in held if version is None or edge.applied_version < version]
    if not behind or now >= give_up:
        return Arrival(done=True)
    reason = f"waits for the edge {_names(behind)} to apply the new routes"
    return Arrival(done=False, reason=reason, until=_soonest(give_up, behind))


def arrivals(instances: Iterable[Instance], config: AppConfig, edges: Sequence[Edge], now: float) -> list[Arrival]:
    """What the edges do not serve yet of these instances, which are all of this config."""
    ready = (i for i in instances if i.phase is Phase.HEALTHY and i.desired is Desired.SERVE and i.sleep is Sleep.AWAKE)
    routed = [i for i in ready if service_port(config, i.process)]
    return [arrival for i in routed if not (arrival := arrived(i, edges, now)).done]


def _soonest(moment: float, confirmed: Iterable[Edge]) -> float:
    """The moment, or the end of the first lease: what an edge confirmed counts no longer than that."""
    return min([moment, *(edge.lease_until for edge in confirmed)])


def _confirmed(edge: Edge, version: int, now: float) -> bool:
    return edge.lease_until > now and edge.applied_version >= version


def _names(edges: Iterable[Edge]) -> str:
    return ", ".join(sorted(edge.name for edge in edges))
