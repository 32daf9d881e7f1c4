"""An image that a disk of the platform's damaged: found by a node, mended from its registry, or told to be loaded again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shellwego.control.imagework import ImageWork
from shellwego.control.loops.images import ImagesLoop
from shellwego.control.unit import Unit
from shellwego.core.deployments import DeploymentState, Stage
from shellwego.core.images import Image, ImageState
from shellwego.drivers.images.memory import MemoryImages
from tests.control.rollout_world import FakeNode, World

REFERENCE = "registry.example/hello:v1"
S = DeploymentState


class Scene:
    """A control plane with its images loop, and an image in its store."""

    def __init__(self) -> None:
        self.world = World()
        self.images = MemoryImages(self.world.clock.now)
        self.digest = self.images.publish(REFERENCE)
        self.node: FakeNode

    async def begin(self) -> None:
        await self.world.begin()
        await self.images.fetch(REFERENCE, self.digest)
        self.world.spawn(ImagesLoop(self.world.control, ImageWork(self.images, self.world.clock)).run())
        self.node = await self.world.node()
        self.node.builds = self.images.is_whole

    async def deploy(self) -> str:
        return await self.world.deploy(REFERENCE, digest=self.digest)

    async def loaded(self) -> None:
        """As if the image had come from a tar."""

        def change(unit: Unit) -> None:
            unit.tx.images.insert(
                Image(
                    id=unit.new_id("img"),
                    project_id="prj_x",
                    reference="hello:v1",
                    digest=self.digest,
                    state=ImageState.READY,
                    loaded=True,
                    created_at=unit.now(),
                )
            )

        await self.world.control.commit(change)

    def image(self) -> Image:
        (row,) = self.world.peek(lambda tx: tx.images.select())
        return row


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.begin()
    yield scene
    await scene.world.end()


async def test_a_damaged_image_of_a_registry_is_fetched_again_and_its_deployment_goes_on(scene: Scene) -> None:
    scene.images.rotten.add(scene.digest)
    done = await scene.world.finished(await scene.deploy())
    assert done.state is S.SUCCEEDED
    assert await scene.images.has(scene.digest)
    assert scene.node.running() == 1


async def test_while_it_is_fetched_again_the_deployment_says_so_in_stage_image(scene: Scene) -> None:
    scene.images.rotten.add(scene.digest)
    scene.images.unreachable.add("registry.example")
    deployment = await scene.deploy()
    await scene.world.clock.advance(5)
    waiting = scene.world.deployment(deployment)
    assert (waiting.state, waiting.stage) == (S.IN_PROGRESS, Stage.IMAGE)
    assert "fetches what is damaged of it again" in waiting.reason
    scene.images.unreachable.clear()
    assert (await scene.world.finished(deployment)).state is S.SUCCEEDED


async def test_a_damaged_image_of_a_tar_fails_its_deployment_and_has_to_be_loaded_again(scene: Scene) -> None:
    await scene.loaded()
    scene.images.rotten.add(scene.digest)
    done = await scene.world.finished(await scene.deploy())
    assert (done.state, done.stage, done.reason_code) == (S.FAILED, Stage.IMAGE, "image-failed")
    assert "damaged on its disk; load the image again" in done.reason
    assert scene.image().state is ImageState.FAILED


async def test_an_image_that_is_bad_itself_fails_its_deployment_and_stays_where_it_is(scene: Scene) -> None:
    scene.node.builds = lambda _: False
    done = await scene.world.finished(await scene.deploy())
    assert (done.state, done.stage, done.reason_code) == (S.FAILED, Stage.IMAGE, "digest-mismatch")
    assert scene.image().state is ImageState.READY
    assert await scene.images.has(scene.digest)


async def test_a_node_that_fails_for_another_reason_casts_no_doubt_on_the_image(scene: Scene) -> None:
    scene.images.rotten.add(scene.digest)
    scene.node.builds = lambda _: True
    scene.node.exits.add(scene.digest)
    await scene.world.finished(await scene.deploy())
    assert scene.images.rotten == {scene.digest}, "nobody looked"


async def test_scaling_up_finds_the_damage_too_and_goes_on_when_it_is_mended(scene: Scene) -> None:
    await scene.world.finished(await scene.deploy())
    scene.images.rotten.add(scene.digest)
    await scene.world.change_app(counts={"web": 2})
    await scene.world.clock.until(lambda: scene.node.running() == 2, 5)
    assert scene.image().state is ImageState.READY
