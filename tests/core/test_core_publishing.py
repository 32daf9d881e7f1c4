"""Published ports: who answers at them, and how they are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import AppConfig, Process, Service
from shellwego.core.instances import Desired, Instance, Observed, OwnerKind, Phase, Sleep
from shellwego.core.publishing import (
    MAX_ENDPOINTS,
    NO_PORTS,
    PublishedPort,
    Transport,
    chosen_process,
    open_port,
    parse_ports,
)
from tests.core.app_builder import instance, release

V1 = release(1)
PORT = PublishedPort(
    id="port_1",
    project_id="prj_1",
    app_id="app_1",
    process="web",
    transport=Transport.TCP,
    port=25_432,
    target_port=5432,
    created_at=0.0,
)


def at(number: int, **changes: object) -> Instance:
    made: Instance = replace(instance(V1, number), **changes)  # type: ignore[arg-type]
    seen = Observed(phase=made.phase, address=f"10.64.0.{number + 2}", vm_id=f"vm_{number}")
    return made if "observed" in changes else replace(made, observed=seen)


def told(*instances: Instance) -> dict[str, bool]:
    """By VM: whether it gets new connections."""
    return {each.vm_id: each.taking for each in open_port(PORT, instances).endpoints}


def test_instances_that_serve_get_connections_at_the_ports_target() -> None:
    [endpoint] = open_port(PORT, [at(0)]).endpoints
    assert (endpoint.vm_id, endpoint.ipv4, endpoint.port, endpoint.taking) == ("vm_0", "10.64.0.2", 5432, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.UNHEALTHY},
        {"phase": Phase.STOPPING},
        {"desired": Desired.DRAIN},
        {"desired": Desired.STOP},
        {"sleep": Sleep.DOZING},
    ],
)
def test_one_that_ends_or_is_ill_keeps_what_it_has(changes: dict[str, object]) -> None:
    assert told(at(0), at(1, **changes)) == {"vm_0": True, "vm_1": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.STARTING},
        {"phase": Phase.ASLEEP},
        {"phase": Phase.LOST},
        {"owner": OwnerKind.RUN},
        {"process": "worker"},
        {"observed": Observed(phase=Phase.HEALTHY, address="unix:/run/x", vm_id="vm_1")},
        {"observed": Observed(phase=Phase.HEALTHY, vm_id="vm_1")},
        {"observed": Observed(phase=Phase.HEALTHY, address="10.64.0.9")},
    ],
)
def test_what_has_no_vm_there_or_is_another_process_is_not_told(changes: dict[str, object]) -> None:
    assert told(at(0), at(1, **changes)) == {"vm_0": True}


def test_so_many_are_told_and_no_more() -> None:
    assert len(told(*(at(number) for number in range(MAX_ENDPOINTS + 1)))) == MAX_ENDPOINTS


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("", NO_PORTS),
        ("20000-29999", range(20_000, 30_000)),
        ("5432", range(5432, 5433)),
        ("1-65535", range(1, 65_536)),
    ],
)
def test_a_range_is_its_ends_and_all_between(text: str, ports: range) -> None:
    assert parse_ports(text) == ports


@pytest.mark.parametrize("text", ["a", "0", "2-1", "65536", "1-65536", "1-", "-1", "1,2", "1 - 2", "٣", "1-2-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ports"):
        parse_ports(text)


def config(*names: str, services: tuple[str, ...] = ()) -> AppConfig:
    return AppConfig(
        processes=tuple(Process(name=name) for name in names),
        services=tuple(Service(process=name, port=80) for name in services),
    )


def test_the_process_that_answers_is_the_one_that_can_be_meant() -> None:
    assert chosen_process("", config("db")) == "db"
    assert chosen_process("", config("web", "db", services=("web",))) == "web"
    assert chosen_process("db", config("web", "db")) == "db"
    assert chosen_process("", config("web", "db")) == ""
    assert chosen_process("", config("web", "db", services=("web", "db"))) == ""
    assert chosen_process("mail", config("web")) == ""
