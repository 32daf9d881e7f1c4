"""The images loop: one fetch a digest, reasons kept, blobs of deleted images collected, nothing collected in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shellwego.control.bootstrap import bootstrap
from shellwego.control.images import ChosenImage, delete_image, note_image
from shellwego.control.imagework import ImageWork
from shellwego.control.loops.images import ImagesLoop
from shellwego.control.loops.imagestore import ImageStoreLoop
from shellwego.control.unit import Control
from shellwego.core.apps import App, AppConfig
from shellwego.core.images import Image, ImageState
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.bus import Hint
from shellwego.ports.images import LoadedImage, ResolvedImage
from shellwego.wire import subjects

REFERENCE = "registry.example/hello:v1"


class CountingImages(MemoryImages):
    """Counts fetches, and holds them while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, reference: str, digest: str) -> ResolvedImage:
        self.fetches += 1
        await self.gate.wait()
        return await super().fetch(reference, digest)


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.control = Control(MemoryStore(self.clock), MemoryBus(), self.clock)
        self.images = CountingImages()
        self.work = ImageWork(self.images)

    async def order(self, digest: str, project_id: str = "prj_a", reference: str = REFERENCE) -> Image:
        chosen = ChosenImage(reference=reference, digest=digest)
        return await self.control.commit(lambda unit: note_image(unit, project_id, chosen))

    async def states(self) -> list[ImageState]:
        return [image.state for image in await self.control.read(lambda tx: tx.images.select())]

    async def until(self, condition: Callable[[], Awaitable[bool]], timeout: float = 1000.0) -> None:
        deadline = self.clock.monotonic() + timeout
        while not await condition():
            assert self.clock.monotonic() < deadline, await self.states()
            await self.clock.advance(0.25)

    async def until_state(self, *states: ImageState) -> None:
        async def reached() -> bool:
            return await self.states() == list(states)

        await self.until(reached)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.control.commit(lambda unit: bootstrap(unit, "pat_x"))
    loops = (ImagesLoop(world.control, world.work), ImageStoreLoop(world.control, world.work))
    tasks = [asyncio.ensure_future(loop.run()) for loop in loops]
    yield world
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_ordered_image_is_fetched(world: World) -> None:
    digest = world.images.publish(REFERENCE, size_bytes=5, exposed_ports=(80,))
    await world.order(digest)
    await world.until_state(ImageState.READY)
    image = (await world.control.read(lambda tx: tx.images.select()))[0]
    assert (image.size_bytes, image.exposed_ports, image.reason) == (5, (80,), "")
    assert await world.images.has(digest)


async def test_one_digest_is_fetched_once_for_all_who_want_it(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.gate.clear()
    await world.order(digest, "prj_a")
    await world.clock.advance(1)
    await world.order(digest, "prj_b")
    await world.clock.advance(20)
    world.images.gate.set()
    await world.until_state(ImageState.READY, ImageState.READY)
    assert world.images.fetches == 1


async def test_a_corrupt_image_fails_at_once_with_the_reason(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.corrupt(REFERENCE)
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    image = (await world.control.read(lambda tx: tx.images.select()))[0]
    assert "corrupt" in image.reason
    assert world.images.fetches == 1


async def test_a_registry_that_comes_back_is_asked_again(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.unreachable.add("registry.example")
    await world.order(digest)
    await world.clock.advance(60)
    assert await world.states() == [ImageState.FETCHING]
    world.images.unreachable.clear()
    await world.until_state(ImageState.READY)


async def test_a_registry_that_stays_away_fails_the_image_after_minutes(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.unreachable.add("registry.example")
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    assert 300 <= world.clock.monotonic() < 400
    assert world.images.fetches < 30


async def test_a_failed_image_ordered_again_is_tried_again(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.corrupt(REFERENCE)
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    await world.order(digest)
    assert await world.states() == [ImageState.FETCHING]
    await world.until_state(ImageState.FAILED)
    assert world.images.fetches == 2


async def test_what_was_under_way_goes_on_after_a_restart(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    await world.order(digest)
    other = World()
    other.control = world.control
    other.images.publish(REFERENCE)
    loop = ImagesLoop(other.control, ImageWork(other.images))
    await loop.step()
    await world.until_state(ImageState.READY)


async def test_the_apps_of_the_project_are_planned_again_when_the_image_is_there(world: World) -> None:
    app = App(
        id="app_x",
        project_id="prj_a",
        name="shop",
        hostname="shop.localhost",
        config=AppConfig(),
        counts={},
        created_at=0.0,
        updated_at=0.0,
    )
    await world.control.commit(lambda unit: unit.tx.apps.insert(app))
    digest = world.images.publish(REFERENCE)
    async with world.control.bus.subscribe(subjects.app(app.id)) as hints:
        hint = asyncio.ensure_future(_first(hints))
        await world.order(digest)
        await world.until_state(ImageState.READY)
        assert (await hint).subject == subjects.app(app.id)
    kinds = {event.type for event in await world.control.read(lambda tx: tx.events.select())}
    assert "image.ready" in kinds


async def _first(hints: AsyncIterator[Hint]) -> Hint:
    return await anext(hints)


async def test_blobs_of_a_deleted_image_go_and_others_stay(world: World) -> None:
    kept = world.images.publish(REFERENCE)
    gone = world.images.publish("registry.example/other:v1")
    await world.order(kept)
    image = await world.order(gone, reference="registry.example/other:v1")
    await world.until_state(ImageState.READY, ImageState.READY)
    stored = await world.control.read(lambda tx: tx.images.get(image.id))
    assert stored is not None
    await world.control.commit(lambda unit: delete_image(unit, stored))

    async def collected() -> bool:
        return not await world.images.has(gone)

    await world.until(collected)
    assert await world.images.has(kept)


async def test_nothing_is_collected_while_an_image_is_being_taken_in(world: World) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def register(loaded: tuple[LoadedImage, ...]) -> None:
        entered.set()
        await release.wait()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"tar"

    class Source(MemoryImages):
        async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
            return ()

    work = ImageWork(Source())
    asked = False

    async def keep() -> frozenset[str]:
        nonlocal asked
        asked = True
        return frozenset()

    loading = asyncio.ensure_future(work.load(chunks(), register))
    await entered.wait()
    collecting = asyncio.ensure_future(work.collect(keep))
    await asyncio.sleep(0.01)
    assert not asked
    release.set()
    await loading
    await collecting
    assert asked
