"""Quotas are counted with the change: together with everything that comes at the same moment, never one too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shellwego.control import apps, deployments, quotas
from shellwego.control.apps import AppWish
from shellwego.control.bootstrap import bootstrap
from shellwego.control.config import ConfigWish, ProcessWish
from shellwego.control.images import ChosenImage, note_image, register_loaded
from shellwego.control.runs import RunWish, create_run
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import MIB, App
from shellwego.core.errors import InvalidError, QuotaError
from shellwego.core.images import ImageState
from shellwego.core.quota import Limits
from shellwego.core.tenancy import Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.images import LoadedImage, ResolvedImage
from shellwego.ports.store import Transaction

AT_ONCE = 1000
IMAGE = ChosenImage(reference="hello:v1", digest="sha256:" + "0" * 64)


@dataclass
class Tenant:
    """The first organization, with limits."""

    control: Control
    project: Project

    async def limited(self, **limits: int) -> None:
        def work(unit: Unit) -> None:
            organization = unit.tx.organizations.get(self.project.organization_id)
            assert organization is not None
            quotas.set_organization_quota(unit, organization, None, limits)

        await self.control.commit(work)

    async def create(self, name: str) -> App:
        return await self.control.commit(
            lambda unit: apps.create_app(unit, self.project, AppWish(name=name), "localhost")
        )

    async def deploy(self, name: str, **wish: int) -> App:
        """One process of these sizes, deployed."""
        await self.create(name)
        sizes = ConfigWish(image=IMAGE.reference, processes={"web": ProcessWish(**wish)})
        await self.control.commit(
            lambda unit: deployments.request_deployment(
                unit, self.app(unit.tx, name), sizes, IMAGE, deployments.Rollout()
            )
        )
        return await self.control.read(lambda tx: self.app(tx, name))

    async def scale(self, name: str, count: int) -> App:
        return await self.control.commit(lambda unit: apps.scale_app(unit, self.app(unit.tx, name), {"web": count}))

    def app(self, tx: Transaction, name: str) -> App:
        return next(app for app in tx.apps.select() if app.name == name)


@pytest.fixture
async def tenant(tmp_path: Path) -> AsyncIterator[Tenant]:
    clock = VirtualClock()
    control = Control(open_sqlite(tmp_path / "state.db", clock), MemoryBus(), clock)
    first = await control.commit(lambda unit: bootstrap(unit, "pat_" + "x" * 43))
    assert first is not None
    yield Tenant(control, first.project)
    await control.store.close()


def exceeded(error: pytest.ExceptionInfo[QuotaError]) -> tuple[str, int | None, int | None]:
    fault = error.value.errors[0]
    assert error.value.code == "quota-exceeded"
    return fault.field, fault.limit, fault.used


async def test_a_thousand_creates_at_once_give_exactly_what_is_left(tenant: Tenant) -> None:
    await tenant.limited(apps=4)
    for number in range(3):
        await tenant.create(f"before-{number}")
    ended = await asyncio.gather(*(tenant.create(f"app-{n}") for n in range(AT_ONCE)), return_exceptions=True)
    refused = [error for error in ended if isinstance(error, QuotaError)]
    assert len(refused) == AT_ONCE - 1
    assert {(error.errors[0].field, error.errors[0].limit, error.errors[0].used) for error in refused} == {
        ("apps", 4, 4)
    }
    assert await tenant.control.read(lambda tx: tx.apps.count()) == 4


async def test_scaling_and_sizes_count_and_what_shrinks_is_never_refused(tenant: Tenant) -> None:
    await tenant.deploy("shop", memory_bytes=256 * MIB, cpu_milli=500)
    await tenant.scale("shop", 3)
    await tenant.limited(instances=3, memory=600 * MIB, cpu=2_000)
    with pytest.raises(QuotaError) as error:
        await tenant.scale("shop", 4)
    assert exceeded(error) == ("instances", 3, 3)
    assert (await tenant.scale("shop", 2)).counts == {"web": 2}
    larger = ConfigWish(processes={"web": ProcessWish(memory_bytes=512 * MIB)})
    with pytest.raises(QuotaError) as error:
        await tenant.control.commit(lambda unit: deployments.change(unit, tenant.app(unit.tx, "shop"), larger))
    assert exceeded(error) == ("memory", 600 * MIB, 512 * MIB)
    releases = await tenant.control.read(lambda tx: tx.releases.count())
    assert releases == 1, "nothing of what was refused is stored"


async def test_a_stopped_app_gives_back_what_it_takes_again_when_started(tenant: Tenant) -> None:
    await tenant.limited(instances=1)
    await tenant.deploy("shop")
    await tenant.control.commit(lambda unit: apps.stop_app(unit, tenant.app(unit.tx, "shop")))
    await tenant.deploy("other")
    with pytest.raises(QuotaError) as error:
        await tenant.control.commit(lambda unit: apps.start_app(unit, tenant.app(unit.tx, "shop")))
    assert exceeded(error) == ("instances", 1, 1)


async def test_an_app_that_was_never_deployed_takes_no_instances(tenant: Tenant) -> None:
    await tenant.limited(instances=0)
    await tenant.create("shop")
    await tenant.scale("shop", 50)
    with pytest.raises(QuotaError) as error:
        await tenant.deploy("other")
    assert exceeded(error) == ("instances", 0, 0)


async def test_one_off_commands_count_while_they_live(tenant: Tenant) -> None:
    app = await tenant.deploy("shop")

    def released(unit: Unit) -> None:
        stored = tenant.app(unit.tx, "shop")
        release = unit.tx.releases.select()[0]
        unit.tx.apps.update(replace(stored, release_id=release.id, stable_release_id=release.id))
        for image in unit.tx.images.select():
            unit.tx.images.update(replace(image, state=ImageState.READY))

    await tenant.control.commit(released)
    await tenant.limited(instances=2)
    run = RunWish(command=("true",))
    await tenant.control.commit(lambda unit: create_run(unit, tenant.app(unit.tx, app.name), run))
    with pytest.raises(QuotaError) as error:
        await tenant.control.commit(lambda unit: create_run(unit, tenant.app(unit.tx, app.name), run))
    assert exceeded(error) == ("instances", 2, 2)


async def test_a_project_is_bounded_within_its_organization(tenant: Tenant) -> None:
    await tenant.limited(apps=5)
    await tenant.control.commit(lambda unit: quotas.set_project_quota(unit, tenant.project, {"apps": 1}))
    await tenant.create("shop")
    with pytest.raises(QuotaError, match="the project default") as error:
        await tenant.create("other")
    assert exceeded(error) == ("apps", 1, 1)


@pytest.mark.parametrize(
    ("limits", "field"),
    [({"apples": 1}, "limits.apples"), ({"apps": -1}, "limits.apps"), ({"memory": 1 << 60}, "limits.memory")],
)
async def test_limits_that_make_no_sense_are_refused_by_their_name(tenant: Tenant, limits: Limits, field: str) -> None:
    with pytest.raises(InvalidError) as error:
        await tenant.control.commit(lambda unit: quotas.set_project_quota(unit, tenant.project, limits))
    assert error.value.errors[0].field == field


async def test_images_count_by_their_sizes_and_each_once(tenant: Tenant) -> None:
    await tenant.limited(images=100)

    async def note(digest: str, size: int, reference: str = "registry.example/a:v1") -> None:
        chosen = ChosenImage(reference=reference, digest=f"sha256:{digest * 64}", size_bytes=size)
        await tenant.control.commit(lambda unit: note_image(unit, tenant.project.id, chosen))

    await note("a", 60)
    await note("a", 60, "registry.example/a:v2")
    with pytest.raises(QuotaError) as refused:
        await note("b", 41)
    assert [(error.field, error.used) for error in refused.value.errors] == [("images", 60)]
    loaded = LoadedImage(image=ResolvedImage(digest="sha256:" + "c" * 64, size_bytes=41), names=("c:v1",))
    with pytest.raises(QuotaError):
        await tenant.control.commit(lambda unit: register_loaded(unit, tenant.project, [loaded], None))
    await note("b", 40)


async def test_old_images_that_nothing_needs_make_room_for_new_ones(tenant: Tenant) -> None:
    """A pipeline that deploys each push never meets the limit; what an app may return to never goes for it."""
    await tenant.limited(images=100)
    await tenant.create("shop")
    chosen = [
        ChosenImage(reference="registry.example/shop:main", digest=f"sha256:{n:064}", size_bytes=30) for n in range(30)
    ]

    def deployed(unit: Unit, image: ChosenImage) -> None:
        row = note_image(unit, tenant.project.id, image)
        unit.tx.images.update(replace(row, state=ImageState.READY))

    for image in chosen:
        await tenant.control.commit(lambda unit, image=image: deployed(unit, image))
    rows = await tenant.control.read(lambda tx: tx.images.select())
    assert {row.digest for row in rows} == {image.digest for image in chosen[-3:]}


async def test_what_the_organization_has_costs_it_nothing_more_in_another_project(tenant: Tenant) -> None:
    await tenant.limited(images=100)
    other = replace(tenant.project, id="prj_other", name="prod", network_number=7, version=1)
    image = ChosenImage(reference="registry.example/a:v1", digest="sha256:" + "a" * 64, size_bytes=60)

    def promote(unit: Unit) -> None:
        unit.tx.projects.insert(other)
        for project in (tenant.project, other):
            note_image(unit, project.id, image)

    await tenant.control.commit(promote)
    used = await tenant.control.read(
        lambda tx: quotas.used(tx, quotas.of_organization(tx, tx.organizations.select()[0]))
    )
    assert used["images"] == 60
