"""The platform's private prefix and the numbers of projects' networks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control.bootstrap import bootstrap
from shellwego.control.networks import next_number, private_prefix
from shellwego.control.projects import add_project, delete_project
from shellwego.control.unit import Control, Unit
from shellwego.core.addresses import MAX_NUMBER
from shellwego.core.errors import ConflictError
from shellwego.core.events import Counter
from shellwego.core.tenancy import Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore


@pytest.fixture
async def control() -> Control:
    """A platform after its first start."""
    clock = VirtualClock()
    made = Control(MemoryStore(clock), MemoryBus(), clock)
    await start(made)
    return made


async def start(control: Control) -> None:
    await control.commit(lambda unit: bootstrap(unit, "a secret"))


def make(unit: Unit, name: str) -> Project:
    [organization] = unit.tx.organizations.select()
    return add_project(unit, organization, name)


async def numbers(control: Control) -> dict[str, int]:
    projects = await control.read(lambda tx: tx.projects.select())
    return {project.name: project.network_number for project in projects}


async def test_a_prefix_is_chosen_once_and_stays(control: Control) -> None:
    prefix = await control.read(private_prefix)
    assert prefix.startswith("fd")
    assert prefix.endswith("/48")
    await start(control)
    assert await control.read(private_prefix) == prefix
    clock = VirtualClock()
    other = Control(MemoryStore(clock), MemoryBus(), clock)
    assert await other.read(private_prefix) == ""
    clock.new_id("net")  # virtual clocks give the same ids; true ones do not
    await start(other)
    assert await other.read(private_prefix) != prefix


async def test_a_number_is_given_once_and_never_again(control: Control) -> None:
    two = await control.commit(lambda unit: make(unit, "two"))
    assert await numbers(control) == {"default": 1, "two": 2}
    await control.commit(lambda unit: delete_project(unit, two))
    await control.commit(lambda unit: make(unit, "three"))
    assert await numbers(control) == {"default": 1, "three": 3}


async def test_projects_of_an_older_version_get_theirs_in_the_order_of_their_making(control: Control) -> None:
    def age(unit: Unit) -> None:
        first = unit.tx.projects.select()[0]
        for name, made in (("later", 20.0), ("earlier", 10.0)):
            old = replace(first, id=unit.new_id("prj"), name=name, network_number=0, created_at=made)
            unit.tx.projects.insert(old)

    await control.commit(age)
    await start(control)
    await start(control)
    assert await numbers(control) == {"default": 1, "earlier": 2, "later": 3}


async def test_no_two_projects_have_one_number(control: Control) -> None:
    def twice(unit: Unit) -> None:
        unit.tx.projects.update(replace(make(unit, "two"), network_number=1))

    with pytest.raises(ConflictError):
        await control.commit(twice)


async def test_when_numbers_run_out_it_says_so(control: Control) -> None:
    def use_up(unit: Unit) -> None:
        counter = unit.tx.counters.get("networks.numbers")
        assert counter is not None
        unit.tx.counters.update(Counter(id=counter.id, value=MAX_NUMBER, version=counter.version))

    await control.commit(use_up)
    with pytest.raises(ConflictError) as refused:
        await control.commit(next_number)
    assert refused.value.code == "no-network-number"
