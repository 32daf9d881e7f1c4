"""A route table becomes a pool; what does not fit into HAProxy's words is refused by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.routing import Departed, Endpoint, Route, RouteState, RouteTable
from shellwego.edge.pool import Slot, instance_of
from shellwego.edge.targets import Targets, parse_address, read_table, server_name, want
from tests.edge.rig import route


def read(*routes: Route) -> Targets:
    return read_table(RouteTable(version=3, routes=routes))


def at(address: str, instance: str = "ins_a", weight: int = 100) -> Endpoint:
    return Endpoint(instance_id=instance, address=address, weight=weight)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("tcp:10.64.0.5:8080", "10.64.0.5:8080"),
        ("tcp:[fd00::1]:80", "[fd00::1]:80"),
        ("tcp:fd00::1:80", "[fd00::1]:80"),
        ("unix:/run/x/app.sock", "unix@/run/x/app.sock"),
    ],
)
def test_addresses_are_written_as_haproxy_reads_them(text: str, parsed: str) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp:",
        "tcp:10.64.0.5",
        "tcp:10.64.0.5:0",
        "tcp:10.64.0.5:65536",
        "tcp:10.64.0.5:+80",
        "tcp:10.64.0.5:８0",
        "tcp:10.64.0.5:80 weight 1",
        "tcp:10.64.0.5:80;show info",
        "tcp:10.64.0.5:80\nshow info",
        "tcp:app.example:80",
        "tcp:fe80::1%eth0:80",
        "udp:10.64.0.5:80",
        "unix:relative",
        "unix:/run/../etc",
        "unix:/run/a b",
        "unix:/run/a;b",
        "unix:/" + "a" * 200,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several kinds of wrong
        parse_address(text)


@pytest.mark.parametrize(
    "host",
    ["", "UPPER.example", "a b", "a;b", "a\nb", "-a.example", "a..b", "*", "a.example.", "x" * 300, "a/b", "é.example"],
)
def test_a_host_that_is_no_host_name_is_refused_and_the_others_are_served(host: str) -> None:
    bad = Route(
        host=host, app_id="app_bad", app_name="bad", state=RouteState.SERVING, endpoints=(at("tcp:10.0.0.1:80"),)
    )
    targets = read(bad, route(at("tcp:10.0.0.2:80", "ins_b")))
    assert set(targets.hosts) == {"hello.localhost"}
    assert len(targets.refused) == 1


@pytest.mark.parametrize(
    "endpoint",
    [
        at("tcp:10.0.0.1:80", "ins a"),
        at("tcp:10.0.0.1:80", "ins/a"),
        at("tcp:10.0.0.1:80", "ins.a"),
        at("tcp:10.0.0.1:80", ""),
        at("tcp:10.0.0.1:80", "i" * 65),
        at("tcp:10.0.0.1:80", weight=-1),
        at("tcp:10.0.0.1:80", weight=257),
        at("nonsense"),
    ],
)
def test_a_bad_endpoint_is_refused_and_its_neighbour_serves(endpoint: Endpoint) -> None:
    targets = read(route(endpoint, at("tcp:10.0.0.2:80", "ins_b")))
    assert [instance_of(name) for name in targets.apps["app_hello"]] == ["ins_b"]
    assert len(targets.refused) == 1


def test_a_second_route_of_a_host_is_refused() -> None:
    targets = read(route(at("tcp:10.0.0.1:80")), route(at("tcp:10.0.0.2:80"), app="other", host="hello.localhost"))
    assert targets.hosts == {"hello.localhost": "app_hello"}
    assert len(targets.refused) == 1


def test_every_state_without_endpoints_has_a_page_and_endpoints_outrank_it() -> None:
    targets = read(
        *(route(app=state.value, state=state) for state in RouteState),
        route(at("tcp:10.0.0.1:80"), app="odd", state=RouteState.FAILING),
    )
    assert targets.pages == {
        "serving.localhost": "no-server-ready",
        "stopped.localhost": "app-stopped",
        "starting.localhost": "app-starting",
        "failing.localhost": "app-failing",
        "asleep.localhost": "app-asleep",
    }
    assert targets.hosts == {"odd.localhost": "app_odd"}


def test_a_restarted_vm_with_another_address_is_another_server_of_the_same_instance() -> None:
    names = {server_name("ins_a", address) for address in ("10.0.0.1:80", "10.0.0.2:80")}
    assert len(names) == 2
    assert {instance_of(name) for name in names} == {"ins_a"}


def test_departed_instances_are_known_by_the_server_of_their_next_vm() -> None:
    departed = Departed(instance_id="ins_a"), Departed(instance_id="ins_b", address="tcp:10.0.0.2:80")
    targets = read(replace(route(at("tcp:10.0.0.1:80", "ins_c")), departed=departed))
    assert targets.departed == {"ins_a": "", "ins_b": server_name("ins_b", "10.0.0.2:80")}
    assert want(targets, {"app_hello": 0}).departed == targets.departed


def test_a_departed_instance_whose_next_address_is_none_is_refused_and_nothing_of_it_is_cut() -> None:
    targets = read(replace(route(at("tcp:10.0.0.1:80")), departed=(Departed(instance_id="ins_b", address="x"),)))
    assert (targets.departed, len(targets.refused), set(targets.apps)) == ({}, 1, {"app_hello"})


def test_apps_get_their_backend_and_one_without_shows_that_no_server_is_ready() -> None:
    targets = read(route(at("tcp:10.0.0.1:80", weight=7)), route(at("tcp:10.0.0.2:80"), app="late"))
    wanted = want(targets, {"app_hello": 3})
    assert wanted.servers == {("swg_b0003", server_name("ins_a", "10.0.0.1:80")): Slot("10.0.0.1:80", 7)}
    assert wanted.hosts == {"hello.localhost": "swg_b0003"}
    assert wanted.pages == {"late.localhost": "no-server-ready"}
