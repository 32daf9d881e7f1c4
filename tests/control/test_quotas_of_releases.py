"""Quotas count what may run, and not only what the next release would be: no way of asking gets more than was allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shellwego.control import apps, deployments, quotas
from shellwego.control.apps import AppWish
from shellwego.control.bootstrap import bootstrap
from shellwego.control.changes import apply
from shellwego.control.config import ConfigWish, ProcessWish
from shellwego.control.images import ChosenImage
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import MIB, App
from shellwego.core.changes import Aim, Change, MoveDeployment, Start
from shellwego.core.deployments import Deployment, DeploymentState, Stage
from shellwego.core.errors import QuotaError
from shellwego.core.images import ImageState
from shellwego.core.tenancy import Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Transaction, eq

IMAGE = ChosenImage(reference="hello:v1", digest="sha256:" + "0" * 64)
GIB = 1024 * MIB
TINY = ConfigWish(processes={"web": ProcessWish(memory_bytes=32 * MIB)})
BIG = ConfigWish(processes={"web": ProcessWish(memory_bytes=2 * GIB)})


@dataclass
class Tenant:
    """The first organization, of which two GiB may run."""

    control: Control
    project: Project

    def app(self, tx: Transaction, name: str = "shop") -> App:
        return next(app for app in tx.apps.select() if app.name == name)

    async def create(self, name: str) -> None:
        wish = AppWish(name=name)
        await self.control.commit(lambda unit: apps.create_app(unit, self.project, wish, "localhost"))

    async def deploy(self, wish: ConfigWish, name: str = "shop") -> Deployment:
        asked = replace(wish, image=IMAGE.reference)
        return await self.control.commit(
            lambda unit: deployments.request_deployment(
                unit, self.app(unit.tx, name), asked, IMAGE, deployments.Rollout()
            )
        )

    async def configure(self, wish: ConfigWish) -> None:
        await self.control.commit(lambda unit: apps.configure(unit, self.app(unit.tx), wish))

    async def scale(self, count: int) -> None:
        await self.control.commit(lambda unit: apps.scale_app(unit, self.app(unit.tx), {"web": count}))

    async def planned(self, *changes: Change, name: str = "shop") -> None:
        """As the rollout loop does it."""
        await self.control.commit(lambda unit: apply(unit, self.app(unit.tx, name), changes))

    async def begins(self, deployment: Deployment) -> None:
        """It is what the app aims at, and the first of its instances is asked for."""

        def stable(tx: Transaction) -> str:
            return self.app(tx).stable_release_id

        release_id = deployment.release_id
        await self.planned(
            _moved(deployment, DeploymentState.IN_PROGRESS),
            Aim(release_id=release_id, stable_release_id=await self.control.read(stable), stable_generation=0),
            Start(process="web", slot=0, release_id=release_id, generation=0),
        )

    async def succeeds(self, deployment: Deployment) -> None:
        release_id = deployment.release_id
        await self.planned(
            _moved(deployment, DeploymentState.SUCCEEDED),
            Aim(release_id=release_id, stable_release_id=release_id, stable_generation=0),
        )

    async def ends(self, deployment: Deployment, state: DeploymentState) -> None:
        """Without its release, and what the app aims at is what it was."""
        await self.planned(_moved(deployment, state))

    async def memory(self) -> int:
        def count(tx: Transaction) -> int:
            return quotas.used(tx, quotas.of_project(tx, self.project), ["memory"])["memory"]

        return await self.control.read(count)


def _moved(deployment: Deployment, state: DeploymentState) -> MoveDeployment:
    return MoveDeployment(deployment_id=deployment.id, state=state, stage=Stage.PLACING, reason="")


@pytest.fixture
async def tenant(tmp_path: Path) -> AsyncIterator[Tenant]:
    clock = VirtualClock()
    control = Control(open_sqlite(tmp_path / "state.db", clock), MemoryBus(), clock)
    first = await control.commit(lambda unit: bootstrap(unit, "pat_" + "x" * 43))
    assert first is not None
    made = Tenant(control, first.project)

    def limit(unit: Unit) -> None:
        organization = unit.tx.organizations.get(first.project.organization_id)
        assert organization is not None
        quotas.set_organization_quota(unit, organization, None, {"memory": 2 * GIB})

    await control.commit(limit)
    await made.create("shop")
    yield made
    await control.store.close()


async def test_a_smaller_config_that_is_not_rolled_out_does_not_make_room_for_more_of_what_runs(
    tenant: Tenant,
) -> None:
    await tenant.succeeds(await tenant.deploy(BIG))
    await tenant.configure(TINY)
    assert await tenant.memory() == 2 * GIB
    with pytest.raises(QuotaError) as error:
        await tenant.scale(5)
    assert (error.value.errors[0].field, error.value.errors[0].used) == ("memory", 2 * GIB)


async def test_nor_does_one_that_came_while_the_larger_release_waits_to_begin(tenant: Tenant) -> None:
    await tenant.deploy(BIG)
    await tenant.configure(TINY)
    with pytest.raises(QuotaError, match="memory"):
        await tenant.scale(5)


async def test_a_process_that_was_taken_out_of_the_config_counts_until_a_release_without_it_runs(
    tenant: Tenant,
) -> None:
    await tenant.succeeds(await tenant.deploy(BIG))
    without = ConfigWish(processes={"idle": ProcessWish(memory_bytes=32 * MIB)}, remove_processes=("web",))
    await tenant.configure(without)
    await tenant.create("other")
    with pytest.raises(QuotaError, match="memory"):
        await tenant.deploy(TINY, "other")
    await tenant.succeeds(await tenant.deploy(without))
    assert await tenant.memory() == 32 * MIB
    await tenant.deploy(TINY, "other")


async def test_a_small_release_that_failed_leaves_what_the_app_returned_to(tenant: Tenant) -> None:
    await tenant.succeeds(await tenant.deploy(BIG))
    failing = await tenant.deploy(TINY)
    await tenant.begins(failing)
    assert await tenant.memory() == 2 * GIB
    await tenant.ends(failing, DeploymentState.ROLLED_BACK)
    assert await tenant.memory() == 2 * GIB
    with pytest.raises(QuotaError, match="memory"):
        await tenant.scale(2)


async def test_what_serves_on_beside_a_release_that_never_gets_ready_counts(tenant: Tenant) -> None:
    """It never succeeded, so nothing names it once another deployment has taken its place."""
    never_ready = await tenant.deploy(BIG)
    await tenant.begins(never_ready)
    after = await tenant.deploy(TINY)
    await tenant.ends(never_ready, DeploymentState.SUPERSEDED)
    await tenant.begins(after)
    assert await tenant.memory() == 2 * GIB


async def test_a_rollback_to_a_larger_release_is_charged(tenant: Tenant) -> None:
    await tenant.succeeds(await tenant.deploy(BIG))
    await tenant.succeeds(await tenant.deploy(TINY))
    await tenant.create("other")
    await tenant.deploy(TINY, "other")

    def ready(unit: Unit) -> None:
        for image in unit.tx.images.select():
            unit.tx.images.update(replace(image, state=ImageState.READY))

    await tenant.control.commit(ready)
    with pytest.raises(QuotaError, match="memory"):
        await tenant.control.commit(lambda unit: deployments.rollback(unit, tenant.app(unit.tx), None))
    stored = await tenant.control.read(lambda tx: tx.deployments.count(eq("app_id", tenant.app(tx).id)))
    assert stored == 2, "nothing of what was refused is stored"


async def test_a_larger_deployment_is_charged_by_what_it_adds(tenant: Tenant) -> None:
    await tenant.succeeds(await tenant.deploy(TINY))
    await tenant.scale(2)
    with pytest.raises(QuotaError) as error:
        await tenant.deploy(BIG)
    fault = error.value.errors[0]
    assert (fault.field, fault.used) == ("memory", 64 * MIB)
    assert f"{4 * GIB - 64 * MIB} more" in fault.message


async def test_whoever_is_beyond_the_limit_may_shrink_and_be_deployed_anew(tenant: Tenant) -> None:
    await tenant.succeeds(await tenant.deploy(BIG))

    def lower(unit: Unit) -> None:
        quotas.set_project_quota(unit, tenant.project, {"memory": 64 * MIB})

    await tenant.control.commit(lower)
    await tenant.succeeds(await tenant.deploy(replace(BIG, env={"COLOUR": "blue"})))
    await tenant.configure(ConfigWish(processes={"web": ProcessWish(memory_bytes=GIB)}))
    await tenant.succeeds(await tenant.deploy(ConfigWish()))
    assert await tenant.memory() == GIB
    await tenant.scale(0)
    assert await tenant.memory() == 0
