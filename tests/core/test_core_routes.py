"""The route of an app, and when an instance that left it may be stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import Process
from shellwego.core.instances import Desired, Instance, Observed, OwnerKind, Phase, Sleep
from shellwego.core.routes import EDGE_TIMEOUT_S, RouteFacts, detoured, drained, route_of, steps
from shellwego.core.routing import Departed, Route, RouteState
from tests.core.app_builder import NOW, app, draining, edge, instance, release

V1, V2 = release(1), release(2, port=9090)


def route(
    *instances: Instance,
    lingering: tuple[Instance, ...] = (),
    deploying: bool = False,
    failed: bool = False,
    **changes: object,
) -> Route:
    facts = RouteFacts(
        now=NOW,
        app=app(**{"release_id": V1.id, **changes}),
        releases={V1.id: V1, V2.id: V2},
        instances=instances,
        lingering=lingering,
        deploying=deploying,
        failed=failed,
    )
    made = route_of(facts)
    assert made is not None
    return made


def addresses(made: Route) -> list[str]:
    return [endpoint.address for endpoint in made.endpoints]


def test_an_instance_that_serves_is_an_endpoint() -> None:
    made = route(instance(V1))
    assert (made.host, made.state) == ("shop.localhost", RouteState.SERVING)
    assert addresses(made) == ["tcp:10.64.0.2:8080"]


def test_during_a_rollout_each_release_has_its_own_port() -> None:
    other = instance(V2, observed=Observed(phase=Phase.HEALTHY, address="10.64.0.3"))
    assert addresses(route(instance(V1), other)) == ["tcp:10.64.0.2:8080", "tcp:10.64.0.3:9090"]


def test_an_instance_that_answers_at_a_socket_is_an_endpoint_without_a_port_and_none_without_a_service() -> None:
    socket = "unix:/run/shellwego/abc/vm/abcdefghijkl/http.sock"
    at_socket = Observed(phase=Phase.HEALTHY, address=socket)
    assert addresses(route(instance(V1, observed=at_socket))) == [socket]
    silent = replace(V1, config=replace(V1.config, services=()))
    facts = RouteFacts(
        now=NOW, app=app(release_id=V1.id), releases={V1.id: silent}, instances=(instance(V1, observed=at_socket),)
    )
    assert route_of(facts) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.STARTING},
        {"phase": Phase.UNHEALTHY},
        {"phase": Phase.LOST, "phase_since": NOW - V1.config.drain_timeout_s + 0.1},
        {"desired": Desired.DRAIN},
        {"desired": Desired.STOP},
        {"owner": OwnerKind.RUN},
        {"sleep": Sleep.DOZING},
        {"sleep": Sleep.ASLEEP},
        {"process": "worker"},
        {"observed": Observed(phase=Phase.HEALTHY)},
    ],
    ids=lambda changes: str(next(iter(changes.values())))[:24],
)
def test_what_does_not_serve_requests_is_no_endpoint(changes: dict[str, object]) -> None:
    assert addresses(route(replace(instance(V1), **changes))) == []  # type: ignore[arg-type]


def test_the_state_tells_why_there_is_no_endpoint() -> None:
    assert route(stopped=True).state is RouteState.STOPPED
    assert route(release_id="").state is RouteState.STOPPED
    assert route(release_id="", deploying=True).state is RouteState.STARTING
    assert route(release_id="", failed=True).state is RouteState.FAILING
    assert route(counts={"web": 0}).state is RouteState.STOPPED
    assert route(instance(V1, phase=Phase.STARTING)).state is RouteState.STARTING
    assert route(instance(V1, phase=Phase.UNHEALTHY)).state is RouteState.FAILING
    assert route(instance(V1, phase=Phase.ASLEEP)).state is RouteState.ASLEEP
    assert route(instance(V1, sleep=Sleep.DOZING)).state is RouteState.ASLEEP
    again = instance(V1, phase=Phase.STARTING, observed=Observed(phase=Phase.STARTING, ends=2))
    assert route(again).state is RouteState.FAILING


def test_an_app_that_takes_no_requests_has_no_route() -> None:
    worker = release(3, port=0, processes=(Process(name="worker"),))
    facts = RouteFacts(now=NOW, app=app(release_id=worker.id), releases={worker.id: worker}, instances=())
    assert route_of(facts) is None
    assert route_of(replace(facts, app=app(deleting=True))) is None


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.FAILED, Phase.STOPPED])
def test_sessions_of_an_instance_whose_vm_ended_are_at_an_end(phase: Phase) -> None:
    dead = instance(V1, phase=phase)
    assert route(lingering=(dead,)).departed == (Departed(instance_id=dead.id),)


def test_sessions_of_an_instance_that_was_lost_with_its_node_are_kept_as_long_as_of_one_that_drains() -> None:
    lost = instance(V1, phase=Phase.LOST, phase_since=NOW - V1.config.drain_timeout_s)
    assert route(lingering=(lost,)).departed == (Departed(instance_id=lost.id),), "its address spares nobody"


def test_an_instance_that_has_its_next_vm_departed_from_the_former_one_only() -> None:
    again = instance(V1, phase=Phase.STARTING, observed=Observed(phase=Phase.STARTING, address="10.64.0.9"))
    assert route(again, lingering=(again,)).departed == (Departed(instance_id=again.id, address="tcp:10.64.0.9:8080"),)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.HEALTHY},
        {"phase": Phase.UNHEALTHY},
        {"phase": Phase.STOPPING},
        {"phase": Phase.LOST, "phase_since": NOW - V1.config.drain_timeout_s + 0.1},
        {"desired": Desired.DRAIN},
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_sessions_of_an_instance_whose_vm_may_still_answer_are_kept(changes: dict[str, object]) -> None:
    assert route(lingering=(replace(instance(V1), **changes),)).departed == ()  # type: ignore[arg-type]


def test_an_instance_is_drained_when_every_edge_let_go_of_it() -> None:
    assert drained(draining(V1), [edge("e1"), edge("e2", applied=7)], 30.0, NOW).done
    assert drained(draining(V1), [], 30.0, NOW).done


def test_it_is_not_before_the_routes_have_their_new_number() -> None:
    outcome = drained(draining(V1, version=None), [edge()], 30.0, NOW + 1e6)
    assert (outcome.done, outcome.reason) == (False, "waits for the new routes")


def test_an_edge_that_has_not_applied_the_routes_is_waited_for() -> None:
    outcome = drained(draining(V1), [edge("e1"), edge("e2", applied=4)], 30.0, NOW + 59)
    assert not outcome.done
    assert outcome.reason == "waits for the edge e2 to apply the new routes"
    assert outcome.until == NOW + EDGE_TIMEOUT_S


def test_after_the_edge_time_out_it_goes_on_and_names_the_edge() -> None:
    outcome = drained(draining(V1), [edge("e1"), edge("e2", applied=4)], 30.0, NOW + EDGE_TIMEOUT_S)
    assert (outcome.done, outcome.silent) == (True, ("e2",))


def test_what_an_edge_confirmed_counts_while_its_lease_lasts() -> None:
    assert not drained(draining(V1), [edge(lease_until=NOW)], 30.0, NOW).done
    assert drained(draining(V1), [edge(lease_until=NOW + 0.1)], 30.0, NOW).done


def test_an_edge_that_was_taken_down_long_ago_holds_nothing() -> None:
    assert drained(draining(V1), [edge(applied=0, lease_until=NOW - 25 * 3600)], 30.0, NOW).done


def test_open_sessions_are_waited_for_then_cut_and_counted() -> None:
    busy = [edge("e1", v1_0=2), edge("e2", v1_0=1, v9_9=5)]
    waiting = drained(draining(V1), busy, 30.0, NOW + 29)
    assert (waiting.done, waiting.until) == (False, NOW + 30)
    assert waiting.reason == "waits for open sessions, at most 30 s"
    over = drained(draining(V1), busy, 30.0, NOW + 30)
    assert (over.done, over.cut) == (True, 3)


def test_nothing_is_waited_for_where_no_time_is_given() -> None:
    assert drained(draining(V1), [edge(v1_0=2)], 0.0, NOW).cut == 2


WELL = instance(V1)
AGAIN = replace(WELL, phase_since=WELL.phase_since + 5)
STARTING = replace(WELL, phase=Phase.STARTING, observed=Observed(phase=Phase.STARTING, attempt=1))
PENDING = replace(WELL, phase=Phase.PENDING, observed=Observed(), phase_since=WELL.phase_since - 5)
DRAINS = replace(WELL, desired=Desired.DRAIN)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(WELL, WELL, False, id="nothing happened"),
        pytest.param(WELL, AGAIN, True, id="it was ill for a moment"),
        pytest.param(None, PENDING, False, id="it is new"),
        pytest.param(PENDING, STARTING, False, id="it goes on to its first start"),
        pytest.param(STARTING, replace(STARTING, observed=Observed(attempt=2)), True, id="its first VM came and ended"),
        pytest.param(STARTING, None, True, id="it may have served before it ended"),
        pytest.param(DRAINS, replace(DRAINS, phase=Phase.STOPPING, phase_since=NOW), False, id="it drains, and stops"),
        pytest.param(DRAINS, None, False, id="it drained, and ended"),
        pytest.param(None, replace(STARTING, owner=OwnerKind.RUN, phase=Phase.UNHEALTHY), False, id="it is a run"),
    ],
)
def test_a_detour_is_told_from_what_never_was_in_the_routes(
    before: Instance | None, now: Instance | None, expected: bool
) -> None:
    looks = [steps([] if row is None else [row]) for row in (before, now)]
    assert detoured(*looks) is expected
