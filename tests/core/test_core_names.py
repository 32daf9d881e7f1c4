"""The names of a private network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import Process
from shellwego.core.instances import Desired, Instance, Observed, OwnerKind, Phase, Sleep
from shellwego.core.names import AppNames, NamedApp, NamedService, detoured, names_of_app, names_of_network, steps
from tests.core.app_builder import app, instance, release

V1, V2 = release(1), release(2, port=9090)
WORKERS = release(3, processes=(Process(), Process(name="worker")))
UNSERVED = release(4, port=0, processes=(Process(name="worker"), Process(name="cron")))


def at(address: str, of: Instance, vm_id: str = "") -> Instance:
    return replace(of, observed=Observed(phase=of.phase, address=address, vm_id=vm_id))


def names(*instances: Instance, **changes: object) -> AppNames:
    releases = {each.id: each for each in (V1, V2, WORKERS, UNSERVED)}
    told = names_of_app(NamedApp(app=app(**{"release_id": V1.id, **changes}), instances=instances, releases=releases))
    assert told is not None
    return told


def test_an_app_and_its_process_stand_for_the_instances_that_serve() -> None:
    told = names(at("10.64.0.2", instance(V1)), at("10.64.0.3", instance(V1, 1)))
    assert told.hosts["shop"] == told.hosts["web.shop"] == ("10.64.0.2", "10.64.0.3")


def test_an_instance_is_found_by_both_of_its_addresses() -> None:
    both = Observed(phase=Phase.HEALTHY, address="10.64.0.2", private_address="fd12::a40:2")
    told = names(instance(V1, observed=both))
    assert told.hosts["shop"] == told.hosts["web.shop"] == ("10.64.0.2", "fd12::a40:2")


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.UNHEALTHY},
        {"phase": Phase.STARTING},
        {"phase": Phase.ASLEEP},
        {"desired": Desired.DRAIN},
        {"desired": Desired.STOP},
        {"sleep": Sleep.DOZING},
        {"owner": OwnerKind.RUN},
        {"observed": Observed(phase=Phase.HEALTHY, address="unix:/run/x/http.sock")},
        {"observed": Observed(phase=Phase.HEALTHY)},
    ],
)
def test_one_that_does_not_serve_is_in_no_name_of_its_app_which_stays_known(changes: dict[str, object]) -> None:
    told = names(at("10.64.0.2", instance(V1)), replace(instance(V1, 1), **changes))  # type: ignore[arg-type]
    assert told.hosts["shop"] == ("10.64.0.2",)
    alone = names(replace(instance(V1), **changes))  # type: ignore[arg-type]
    assert (alone.hosts["shop"], alone.hosts["web.shop"], alone.services) == ((), (), {})


def test_an_app_without_instances_is_known_with_all_its_processes() -> None:
    assert names(release_id=WORKERS.id).hosts == {"shop": (), "web.shop": (), "worker.shop": ()}
    assert names(release_id="").hosts == {"shop": ()}


def test_the_apps_name_stands_for_what_has_a_service_and_for_all_where_nothing_has() -> None:
    web = at("10.64.0.2", instance(WORKERS))
    worker = at("10.64.0.3", instance(WORKERS, 1, process="worker"))
    told = names(web, worker, release_id=WORKERS.id)
    assert (told.hosts["shop"], told.hosts["worker.shop"]) == (("10.64.0.2",), ("10.64.0.3",))
    workers = [at(f"10.64.0.{n}", instance(UNSERVED, n, process=p)) for n, p in ((2, "worker"), (3, "cron"))]
    assert names(*workers, release_id=UNSERVED.id).hosts["shop"] == ("10.64.0.2", "10.64.0.3")


def test_each_vm_has_a_name_by_its_instance_and_by_its_own_id_whether_it_serves_or_not() -> None:
    ill = replace(at("10.64.0.2", instance(V1), "vm_7"), id="ins_1", phase=Phase.UNHEALTHY)
    assert {name: found for name, found in names(ill).hosts.items() if name.endswith(".vm")} == {
        "ins-1.vm": ("10.64.0.2",),
        "vm-7.vm": ("10.64.0.2",),
    }
    asleep = replace(ill, phase=Phase.ASLEEP)
    assert not [name for name in names(asleep).hosts if name.endswith(".vm")]


def test_during_a_rollout_each_service_is_at_the_port_of_its_own_release() -> None:
    told = names(at("10.64.0.2", instance(V1)), at("10.64.0.3", instance(V2)))
    assert told.services == {
        "_web._tcp.shop": (NamedService(target="v1.0.vm", port=8080), NamedService(target="v2.0.vm", port=9090))
    }


def test_texts_tell_an_apps_instances_and_the_networks_apps() -> None:
    told = names(at("10.64.0.2", instance(V1)))
    assert told.texts == {"_instances.shop": ("instance=v1.0,process=web,slot=0,ip=10.64.0.2,node=node_a",)}
    network = names_of_network("net_1", (told, AppNames(app="api", hosts={"api": ()})))
    assert (network.network_id, network.texts["_apps"]) == ("net_1", ("api,shop",))
    assert network.hosts == {**told.hosts, "api": ()}


def test_an_app_that_is_deleted_has_no_names() -> None:
    facts = NamedApp(app=app(deleting=True), instances=(instance(V1),), releases={})
    assert names_of_app(facts) is None


def test_a_network_with_too_many_instances_names_those_of_its_first_apps() -> None:
    large = [AppNames(app=name, instances=6000, hosts={name: ()}) for name in ("c", "a", "b")]
    assert names_of_network("net", large).texts["_apps"] == ("a",)


def test_all_vms_of_an_app_are_known_by_their_private_addresses_also_those_that_do_not_serve() -> None:
    def seen(number: int, **changes: object) -> Instance:
        made = replace(instance(V1, number), **changes)  # type: ignore[arg-type]
        return replace(
            made, observed=Observed(phase=made.phase, address="10.64.0.2", private_address=f"fd12::{number}")
        )

    told = names(
        seen(1, phase=Phase.STARTING),
        seen(2, owner=OwnerKind.RUN),
        seen(3, desired=Desired.STOP),
        seen(4, phase=Phase.ASLEEP),
        seen(5, phase=Phase.STOPPED),
        at("10.64.0.3", instance(V1, 6)),
    )
    assert told.addresses == ("fd12::1", "fd12::2", "fd12::3")
    assert names_of_network("net_1", (told, AppNames(app="api", app_id="api"))).identities == {"app": told.addresses}


WELL = at("10.64.0.2", instance(V1))
ILL = replace(WELL, phase=Phase.UNHEALTHY, phase_since=WELL.phase_since + 3)
NUMBERED = replace(WELL, routed_version=7)
UNROUTED = replace(WELL, routed_version=None)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(WELL, WELL, False, id="nothing happened"),
        pytest.param(WELL, replace(WELL, phase_since=WELL.phase_since + 5), True, id="it was ill for a moment"),
        pytest.param(ILL, replace(ILL, phase_since=ILL.phase_since + 5), True, id="it was well for a moment"),
        pytest.param(replace(WELL, routed_version=None), NUMBERED, False, id="it entered the routes"),
        pytest.param(NUMBERED, replace(WELL, routed_version=None), True, id="it was to sleep for a moment"),
        pytest.param(NUMBERED, replace(WELL, routed_version=9), True, id="it was to sleep, and is in the routes again"),
        pytest.param(None, WELL, False, id="it is new"),
        pytest.param(UNROUTED, replace(UNROUTED, version=9), True, id="without a service: it may have been to sleep"),
        pytest.param(
            replace(NUMBERED, desired=Desired.STOP),
            replace(NUMBERED, desired=Desired.STOP, phase=Phase.STOPPING, phase_since=WELL.phase_since + 5),
            False,
            id="it stops",
        ),
    ],
)
def test_names_that_were_others_for_a_moment_are_told_from_those_that_stayed(
    before: Instance | None, now: Instance | None, expected: bool
) -> None:
    looks = [steps([] if row is None else [row]) for row in (before, now)]
    assert detoured(*looks) is expected
